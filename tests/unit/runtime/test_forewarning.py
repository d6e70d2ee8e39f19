"""Forewarnings of moves between control groups."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from supervisord.aio.owner import TaskOwner
from supervisord.runtime import forewarning
from supervisord.runtime.forewarning import Forewarning


@pytest.fixture
async def owner() -> AsyncIterator[TaskOwner]:
    made = TaskOwner("test")
    yield made
    await made.close()


async def _over(owner: TaskOwner) -> None:
    async with asyncio.timeout(10):
        while len(owner):  # noqa: ASYNC110 - its tasks end by themselves
            await asyncio.sleep(0.001)


async def test_one_at_a_time(owner: TaskOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, moves = threading.Event(), []
    monkeypatch.setattr(forewarning, "_move", lambda: moves.append(gate.wait(10)))
    given = Forewarning(owner)
    for _ in range(3):
        given.give()
    assert len(owner) == 1
    gate.set()
    await _over(owner)
    given.give()
    await _over(owner)
    assert moves == [True, True]


async def test_where_it_cannot_be_given_nobody_tries_again(
    owner: TaskOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse() -> None:
        tries.append(1)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(forewarning, "_move", refuse)
    given = Forewarning(owner)
    for _ in range(2):
        given.give()
        await _over(owner)
    assert tries == [1]


async def test_a_daemon_that_stops_refuses_nothing_for_it(owner: TaskOwner) -> None:
    given = Forewarning(owner)
    await owner.close()
    given.give()
    assert not len(owner)
