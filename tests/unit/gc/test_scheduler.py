"""The scheduler runs collections one at a time, and answers who waits."""

from __future__ import annotations

import asyncio
import time

import pytest

from supervisord.contracts.errors import Unavailable
from supervisord.contracts.leases import Swept
from supervisord.gc.policy import Thresholds
from supervisord.gc.scheduler import Scheduler


class Heap:
    """Counts sweeps; each takes a while."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.started = 0
        self.running = 0
        self.error: Exception | None = None

    async def sweep(self) -> Swept:
        self.started += 1
        self.running += 1
        assert self.running == 1
        await asyncio.sleep(self.takes)
        self.running -= 1
        if self.error is not None:
            raise self.error
        return Swept({"content": 2, "images": 1})


async def test_the_first_one_and_those_after_deletions() -> None:
    heap = Heap()
    scheduler = Scheduler(heap, Thresholds(startup_delay=0.01, pause_threshold=0.5))
    scheduler.start()
    await asyncio.sleep(0.05)
    assert heap.started == 1
    scheduler.mutated(deleted=False)
    await asyncio.sleep(0.05)
    assert heap.started == 1
    scheduler.mutated(deleted=True)
    await asyncio.sleep(0.05)
    assert heap.started == 2
    assert (scheduler.totals.succeeded, scheduler.totals.deleted) == (2, 6)
    await scheduler.close()


async def test_a_waiter_gets_a_collection_that_started_after_its_call() -> None:
    heap = Heap(0.05)
    scheduler = Scheduler(heap, Thresholds(startup_delay=0))
    scheduler.start()
    first = asyncio.ensure_future(scheduler.collect())
    await asyncio.sleep(0.02)
    assert heap.started == 1
    began = time.monotonic()
    others = [asyncio.ensure_future(scheduler.collect()) for _ in range(5)]
    assert (await first).seconds >= 0.05
    assert not any(other.done() for other in others)
    await asyncio.gather(*others)
    assert heap.started == 2
    assert time.monotonic() - began >= 0.05
    await scheduler.close()


async def test_a_waiter_that_goes_away_disturbs_nobody() -> None:
    heap = Heap(0.02)
    scheduler = Scheduler(heap, Thresholds(startup_delay=0))
    scheduler.start()
    impatient = asyncio.ensure_future(scheduler.collect())
    patient = asyncio.ensure_future(scheduler.collect())
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert (await patient).seconds > 0
    await scheduler.close()


async def test_a_failure_reaches_the_waiters_and_ends_nothing() -> None:
    heap = Heap()
    heap.error = OSError("broken")
    scheduler = Scheduler(heap, Thresholds(startup_delay=0))
    scheduler.start()
    with pytest.raises(OSError, match="broken"):
        await scheduler.collect()
    heap.error = None
    await scheduler.collect()
    assert (scheduler.totals.failed, scheduler.totals.succeeded) == (1, 1)
    await scheduler.close()


async def test_close_answers_the_waiters() -> None:
    heap = Heap(60)
    scheduler = Scheduler(heap, Thresholds(startup_delay=0))
    scheduler.start()
    waiting = asyncio.ensure_future(scheduler.collect())
    await asyncio.sleep(0.01)
    later = asyncio.ensure_future(scheduler.collect())
    await asyncio.sleep(0)
    await scheduler.close()
    for waiter in (waiting, later):
        with pytest.raises(Unavailable):
            await waiter
    with pytest.raises(Unavailable):
        await scheduler.collect()


async def test_the_next_one_waits_by_the_pause_alone() -> None:
    """Data that takes long to remove holds nobody up."""

    class Slow(Heap):
        async def sweep(self) -> Swept:
            swept = await super().sweep()
            return Swept(swept.records, pause=10.0 if self.started == 1 else 0.0)

    heap = Slow(0.02)
    scheduler = Scheduler(heap, Thresholds(startup_delay=0))
    scheduler.start()
    await scheduler.collect()
    scheduler.mutated(deleted=True)
    due = scheduler.due()
    assert due is not None and 480 < due <= 490  # 10 s are 2 % of 500 s
    await scheduler.collect()
    for _ in range(3):
        await scheduler.collect()
    scheduler.mutated(deleted=True)
    due = scheduler.due()
    assert due is not None and 90 < due <= 98  # 2 s on average
    await scheduler.close()
