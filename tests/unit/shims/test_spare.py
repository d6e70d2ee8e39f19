"""The spare that a zygote keeps: a fork that waits to become a shim."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from protos.containerd.task.v3 import shim_pb2 as v3

from .conftest import ShimRoom, eventually, needs_root

pytestmark = needs_root


def spares(zygote: int) -> list[int]:
    """The processes that hold a zygote's socket to the daemon, without the zygote itself."""
    words = Path(f"/proc/{zygote}/cmdline").read_text().split("\0")
    fd = words[words.index("shims.zygote") + 1]
    name = os.readlink(f"/proc/{zygote}/fd/{fd}")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(link) == name for link in (folder / "fd").iterdir()):
                found.append(int(folder.name))
    return [pid for pid in found if pid != zygote]


async def zygote_with_spare(shims: ShimRoom) -> tuple[int, int]:
    zygote = await shims.zygote.start("shim")
    await eventually(lambda: len(spares(zygote)) == 1)
    return zygote, spares(zygote)[0]


async def test_a_spare_becomes_a_shim_and_is_replaced(shims: ShimRoom) -> None:
    zygote, spare = await zygote_with_spare(shims)
    assert Path(f"/proc/{spare}/comm").read_text() == "supervisord-spa\n"
    shim = await shims.shim("one", "/bin/true")
    assert shim.pid == spare
    assert Path(f"/proc/{spare}/comm").read_text() == "supervisord-shi\n"
    assert (await shim.call("Connect", v3.ConnectResponse)).shim_pid == spare
    await eventually(lambda: len(spares(zygote)) == 1)
    assert spares(zygote) != [spare]
    held = {os.readlink(link) for link in Path(f"/proc/{spare}/fd").iterdir()}
    assert len([name for name in held if name.startswith("socket:")]) <= 3  # its own only


async def test_more_at_a_time_than_there_are_spares(shims: ShimRoom) -> None:
    zygote, _ = await zygote_with_spare(shims)
    made = await asyncio.gather(*(shims.shim(f"many{number}", "/bin/true") for number in range(6)))
    pids = [(await shim.call("Connect", v3.ConnectResponse)).shim_pid for shim in made]
    assert pids == [shim.pid for shim in made]
    assert len(set(pids)) == 6
    await eventually(lambda: len(spares(zygote)) == 1)


async def test_a_spare_that_was_killed_is_not_missed(shims: ShimRoom) -> None:
    _, spare = await zygote_with_spare(shims)
    os.kill(spare, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{spare}").exists())
    shim = await shims.shim("one", "/bin/true")
    assert shim.pid != spare
    assert (await shim.call("Connect", v3.ConnectResponse)).shim_pid == shim.pid


async def test_a_spare_that_is_killed_with_a_request_in_hand(shims: ShimRoom) -> None:
    """It has the request and has not read it: the create does not wait for its deadline."""
    _, spare = await zygote_with_spare(shims)
    os.kill(spare, signal.SIGSTOP)
    making = asyncio.ensure_future(shims.shim("one", "/bin/true"))
    await asyncio.sleep(0.1)  # longer than the zygote waits before it looks
    assert not making.done()
    os.kill(spare, signal.SIGKILL)
    shim = await asyncio.wait_for(making, 10)
    assert shim.pid != spare
    assert (await shim.call("Connect", v3.ConnectResponse)).shim_pid == shim.pid


async def test_a_spare_that_is_slow_with_a_request_in_hand(shims: ShimRoom) -> None:
    zygote, spare = await zygote_with_spare(shims)
    os.kill(spare, signal.SIGSTOP)
    making = asyncio.ensure_future(shims.shim("one", "/bin/true"))
    await asyncio.sleep(0.1)
    other = await shims.shim("two", "/bin/true")  # which it does not hold up
    os.kill(spare, signal.SIGCONT)
    assert (await making).pid == spare
    assert other.pid != spare
    await eventually(lambda: len(spares(zygote)) == 1)


async def test_a_spare_ends_with_its_zygote(shims: ShimRoom) -> None:
    zygote, spare = await zygote_with_spare(shims)
    os.kill(zygote, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{spare}").exists())
    _, other = await zygote_with_spare(shims)
    await shims.zygote.close()
    await eventually(lambda: not Path(f"/proc/{other}").exists())
