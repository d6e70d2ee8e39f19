"""The daemon's end of the zygote: real zygotes, real forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument, Unavailable
from supervisord.contracts.workers import ShimSpawner
from supervisord.runtime.zygote import Zygote


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    zygote = Zygote()
    yield zygote
    await zygote.close()


class Forks:
    """Shims that nobody uses; ended by their pid."""

    def __init__(self, zygote: ShimSpawner, base: Path) -> None:
        self.zygote = zygote
        self.base = base
        self.pids: list[int] = []

    async def spawn(self, size: int = 1) -> int:
        name = str(self.base / f"s{len(self.pids)}-{os.urandom(4).hex()}")
        log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
                listener.listen()
                pid = await self.zygote.spawn(
                    "shim",
                    {
                        "namespace": "ns",
                        "runtime": "true",
                        "runtime_root": name,
                        "address": name,
                        "pad": "x" * size,
                    },
                    [listener.fileno(), log],
                )
        finally:
            os.close(log)
        self.pids.append(pid)
        return pid

    def end(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def forks(zygote: Zygote, tmp_path: Path) -> object:
    forks = Forks(zygote, tmp_path)
    yield forks
    forks.end()


async def test_forks_are_told_apart(forks: Forks) -> None:
    pids = await asyncio.gather(*(forks.spawn() for _ in range(20)))
    assert len(set(pids)) == 20
    for pid in pids:
        async with asyncio.timeout(5):
            while os.getsid(pid) != pid:  # noqa: ASYNC110 - it answers before it settles
                await asyncio.sleep(0.005)
        fds = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert not any("memfd" in fd for fd in fds)


async def test_a_dead_zygote_is_replaced(zygote: Zygote, forks: Forks) -> None:
    first = await zygote.start()
    pid = await forks.spawn()
    os.kill(first, signal.SIGKILL)
    results = await asyncio.gather(*(forks.spawn() for _ in range(5)))
    assert len(set(results)) == 5
    assert await zygote.start() != first
    os.kill(pid, 0)  # its forks live on
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_a_zygote_that_is_killed_again_and_again(zygote: Zygote, forks: Forks) -> None:
    for _ in range(3):
        os.kill(await zygote.start(), signal.SIGKILL)
        await forks.spawn()


async def test_a_stuck_zygote_is_given_up(forks: Forks) -> None:
    zygote = Zygote(seconds=4.0)
    try:
        pid = await zygote.start()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match="no shim worker in 4 s"):
            await Forks(zygote, forks.base).spawn()
        other = Forks(zygote, forks.base)
        await other.spawn()
        other.end()
    finally:
        await zygote.close()


async def test_what_cannot_be_started_is_unavailable(tmp_path: Path) -> None:
    for python in ("/bin/false", str(tmp_path / "absent")):
        zygote = Zygote(python=python)
        with pytest.raises(Unavailable):
            await zygote.spawn("shim", {}, [])
        await zygote.close()


@pytest.mark.parametrize("merged", [True, False])
async def test_shims_offer_their_memory_for_merging(merged: bool, tmp_path: Path) -> None:
    zygote = Zygote(spares=True, merged=merged)
    forks = Forks(zygote, tmp_path)
    try:
        for _ in range(2):  # a spare, and one that is made on request
            pid = await forks.spawn()
            flags = [
                line.split()
                for line in Path(f"/proc/{pid}/smaps").read_text().splitlines()
                if line.startswith("VmFlags:")
            ]
            assert any("mg" in words for words in flags) is merged
    finally:
        forks.end()
        await zygote.close()


async def test_bad_requests(zygote: Zygote) -> None:
    with pytest.raises(InvalidArgument, match="kind: 'odd'"):
        await zygote.spawn("odd", {})
    with pytest.raises(InvalidArgument, match="arguments: more than"):
        await zygote.spawn("shim", {"x": "y" * 100_000})
    await zygote.close()
    with pytest.raises(Unavailable, match="closed"):
        await zygote.spawn("shim", {})


async def test_large_requests_wait_for_room(forks: Forks) -> None:
    pids = await asyncio.gather(*(forks.spawn(size=60_000) for _ in range(12)))
    assert len(set(pids)) == 12
