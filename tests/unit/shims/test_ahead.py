"""The fork that a spare makes ahead, for the first container that it creates as a shim."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shims import ahead
from shims import reaper as reapers
from shims.loop import Loop
from shims.reaper import Reaper
from supervisord.contracts.errors import DeadlineExceeded, NotFound, Unknown

from .conftest import ShimRoom, eventually, needs_root
from .test_spare import zygote_with_spare


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def reaper(loop: Loop) -> Iterator[Reaper]:
    before = signal.getsignal(signal.SIGCHLD)
    reapers.catch_signal()
    reaper = Reaper(loop)
    yield reaper
    reaper.close()
    signal.signal(signal.SIGCHLD, before)


async def serve(
    loop: Loop, reaper: Reaper, order: Any, body: bytes, fds: Sequence[int]
) -> dict[str, Any]:
    match order["do"]:
        case "refuse":
            raise NotFound("this: not found")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            await loop.sleep(60)
    os.write(fds[0], b"seen")
    return {"pid": os.getpid(), "body": body.decode(), "fds": len(fds)}


def result(loop: Loop, fork: ahead.Ahead, seconds: float = 10) -> Any:
    return loop.run_until(loop.spawn(fork.result(loop, seconds, "work"), "test"))


def made() -> ahead.Ahead:
    fork = ahead.make(serve)
    assert fork is not None
    return fork


def is_gone(loop: Loop, pid: int) -> bool:
    loop.run_until(loop.spawn(loop.sleep(0.01), "pause"))
    return not Path(f"/proc/{pid}").exists()


def test_an_order_with_what_belongs_to_it(loop: Loop, reaper: Reaper) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    fork = made()
    assert fork.order('{"do": "tell"}', b"one\ntwo\n", [write, read])
    os.close(write)
    got = result(loop, fork)
    assert got["body"] == "one\ntwo\n"
    assert got["fds"] == 2
    assert os.read(read, 10) == b"seen"
    os.close(read)
    while not is_gone(loop, got["pid"]):
        pass


def test_failures_are_told_as_they_were(loop: Loop, reaper: Reaper) -> None:
    for what, kind, words in (
        ("refuse", NotFound, "this: not found"),
        ("die", Unknown, "work: the helper process ended without an answer"),
    ):
        fork = made()
        assert fork.order(f'{{"do": "{what}"}}', b"", [2])
        with pytest.raises(kind, match=words):
            result(loop, fork)
        while not is_gone(loop, fork.pid):
            pass


def test_one_that_hangs_is_killed(loop: Loop, reaper: Reaper) -> None:
    fork = made()
    assert fork.order('{"do": "hang"}', b"", [2])
    with pytest.raises(DeadlineExceeded):
        result(loop, fork, 0.05)
    while not is_gone(loop, fork.pid):
        pass


def test_what_is_let_go_ends_and_takes_no_order(loop: Loop, reaper: Reaper) -> None:
    fork = made()
    fork.let_go()
    assert not fork.order('{"do": "tell"}', b"", [2])
    while not is_gone(loop, fork.pid):
        pass


def test_an_order_that_is_too_large_is_left_to_others(loop: Loop, reaper: Reaper) -> None:
    fork = made()
    assert not fork.order('{"do": "tell"}', b"x" * (1 << 20), [2])
    fork.let_go()
    while not is_gone(loop, fork.pid):
        pass


def test_a_dead_one_takes_no_order(loop: Loop, reaper: Reaper) -> None:
    fork = made()
    os.kill(fork.pid, signal.SIGKILL)
    while not is_gone(loop, fork.pid):
        pass
    assert not fork.order('{"do": "tell"}', b"", [2])


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@needs_root
async def test_the_fork_of_a_spare_makes_the_container(shims: ShimRoom) -> None:
    _, spare = await zygote_with_spare(shims)
    (fork,) = children(spare)
    shim = await shims.shim("one", "/bin/true")
    assert children(shim.pid) == [fork], "it waits for the create"
    init = await shim.create()
    await eventually(lambda: children(shim.pid) == [init])
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()


@needs_root
async def test_a_spare_that_lost_its_fork_makes_another(shims: ShimRoom) -> None:
    _, spare = await zygote_with_spare(shims)
    (fork,) = children(spare)
    os.kill(fork, signal.SIGKILL)
    shim = await shims.shim("one", "/bin/true")
    assert shim.pid == spare
    await shim.create()
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()


@needs_root
async def test_the_fork_ends_with_its_spare(shims: ShimRoom) -> None:
    _, spare = await zygote_with_spare(shims)
    (fork,) = children(spare)
    os.kill(spare, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{fork}").exists())
