"""Transfers as a whole: their ends, and who listens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from supervisord.contracts.errors import Unimplemented
from supervisord.contracts.scope import Scope
from supervisord.images import transfers
from supervisord.images.ends import Export, Import, Registry
from supervisord.images.progress import Progress
from supervisord.images.transfers import Defaults, Transfers

_LEASED = Scope("ns", "a lease of the caller's")


class _Sink:
    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    async def write(self, data: bytes) -> None:
        self.data += data

    async def close(self) -> None:
        self.closed = True


async def _bytes() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


def _transfers() -> Transfers:
    """Without stores: for what needs none."""
    nothing = cast(Any, None)
    return Transfers(nothing, nothing, nothing, nothing, Defaults({}))


async def test_an_echo_ends_its_stream() -> None:
    sink = _Sink()
    await _transfers().transfer(_LEASED, Import(_bytes()), Export(sink))
    assert (sink.data, sink.closed) == (b"onetwo", True)


async def test_ways_that_there_are_not() -> None:
    with pytest.raises(Unimplemented, match="unable to transfer from Image Archive Import"):
        await _transfers().transfer(_LEASED, Import(_bytes()), Registry("h.io/a:1"))


async def test_who_does_not_listen_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_LAST_WORDS_SECONDS", 0.05)
    heard: list[Progress] = []

    async def deaf(progress: Progress) -> None:
        heard.append(progress)
        await asyncio.Event().wait()

    original = Transfers._moved

    async def moved(self: Transfers, scope: Any, source: Any, target: Any, tracker: Any) -> None:
        tracker.say("something")
        await original(self, scope, source, target, tracker)

    monkeypatch.setattr(Transfers, "_moved", moved)
    async with asyncio.timeout(5):
        await _transfers().transfer(_LEASED, Import(_bytes()), Export(_Sink()), deaf)
    assert [one.event for one in heard] == ["something"]
