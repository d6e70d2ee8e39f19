"""The loop watch blames our code for holding the loop, and nobody else."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.blocking import _ROOT, LIMIT, Watch


def from_our_code(source: str) -> None:
    """Runs ``source`` as if it stood in a module of the daemon."""
    exec(compile(source, str(_ROOT / "supervisord/daemon/imagined.py"), "exec"))  # noqa: S102


@pytest.mark.blocks("on purpose")
async def test_a_blocking_call_is_blamed(loop_watch: Watch) -> None:
    asyncio.get_running_loop().call_soon(
        from_our_code, f"import time\nx = 1\ntime.sleep({LIMIT * 2})"
    )
    await asyncio.sleep(LIMIT * 3)
    (report,) = loop_watch.reports
    assert report.startswith("supervisord/daemon/imagined.py:3 blocked the event loop for 0.")


async def test_a_test_may_block(loop_watch: Watch) -> None:
    await asyncio.sleep(0)
    time.sleep(LIMIT * 2)  # noqa: ASYNC251
    await asyncio.sleep(0)
    assert loop_watch.reports == []


async def test_waiting_is_not_blocking(loop_watch: Watch) -> None:
    await asyncio.sleep(LIMIT * 2)
    assert loop_watch.reports == []


async def test_garbage_collection_is_not_blocking(loop_watch: Watch) -> None:
    """The time of a collection that our code happens to set off is left out."""
    objects = [[number] for number in range(100_000)]
    source = f"import gc, time\nend = time.monotonic() + {LIMIT * 2}\n"
    source += "while time.monotonic() < end: gc.collect()\n"
    asyncio.get_running_loop().call_soon(from_our_code, source)
    await asyncio.sleep(LIMIT * 3)
    assert loop_watch.reports == []
    assert len(objects) == 100_000
