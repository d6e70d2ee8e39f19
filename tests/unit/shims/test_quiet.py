"""A shim whose container just runs does nothing at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .conftest import ShimRoom, eventually, needs_root

pytestmark = needs_root


def wakeups(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


async def test_it_does_not_wake_up_while_the_daemon_is_there(shims: ShimRoom) -> None:
    shim = await shims.shim("q", "sleep", "100", arguments={"idle_seconds": 0.05})
    await shim.create()
    await shim.start()
    await shims.events.until("/tasks/start")
    await asyncio.sleep(0.3)  # whatever was still under way
    before = wakeups(shim.pid)
    await asyncio.sleep(0.5)
    assert wakeups(shim.pid) == before


async def test_it_looks_around_when_the_daemon_has_gone(shims: ShimRoom) -> None:
    shim = await shims.shim("l", "sleep", "100", arguments={"idle_seconds": 0.05})
    await shim.create()
    await shim.start()
    await asyncio.sleep(0.3)
    shim.client.close()
    before = wakeups(shim.pid)
    await eventually(lambda: wakeups(shim.pid) > before + 3)
    assert Path(f"/proc/{shim.pid}").exists()
