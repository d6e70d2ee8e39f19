"""Runs collections, one at a time, when the policy says so; implements contracts.leases.Collector.

The daemon makes one, attaches it to the metadata stores, starts it and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Unavailable
from supervisord.contracts.leases import Collected, Sweepable

from .policy import Policy, Thresholds

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """What collections did since the start, for metrics; seconds and records."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    deleted: int = 0


class Scheduler:
    """``start`` it on the event loop it shall run on."""

    def __init__(self, garbage: Sweepable, thresholds: Thresholds | None = None) -> None:
        self._garbage = garbage
        self._thresholds = thresholds or Thresholds()
        self._policy = Policy(self._thresholds, time.monotonic())
        self._owner = TaskOwner("gc")
        self._changed = asyncio.Event()
        self._waiters: list[asyncio.Future[Collected]] = []
        self._closed = False
        self.totals = Totals()

    def start(self) -> None:
        """Begins to count from now."""
        self._policy = Policy(self._thresholds, time.monotonic())
        self._owner.spawn(self._run(), "scheduler")

    def mutated(self, *, deleted: bool) -> None:
        """A commit has happened; see Collector."""
        before = self._policy.due()
        self._policy.mutated(time.monotonic(), deleted=deleted)
        if self._policy.due() != before:
            self._changed.set()

    def due(self) -> float | None:
        """See Collector."""
        due = self._policy.due()
        return None if due is None else max(due - time.monotonic(), 0.0)

    async def collect(self) -> Collected:
        """One whole collection that starts after the call.

        Raises Unavailable once closed, and whatever the collection raises."""
        if self._closed:
            raise Unavailable("garbage collection is stopped")
        waiter: asyncio.Future[Collected] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._policy.triggered(time.monotonic())
        self._changed.set()
        return await waiter

    async def close(self) -> None:
        """Stops; a collection that is running is given up, its writes being whole or none."""
        self._closed = True
        await self._owner.close()
        self._answer(self._waiters, error=Unavailable("garbage collection is stopped"))

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            now = time.monotonic()
            due = self._policy.due()
            if due is None or due > now:
                try:
                    async with asyncio.timeout(None if due is None else due - now):
                        await self._changed.wait()
                except TimeoutError:
                    continue  # the time has come
            else:
                await self._collect()

    async def _collect(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._policy.started()
        started = time.monotonic()
        try:
            swept = await self._garbage.sweep()
        except Exception as error:
            log.error("garbage collection failed: %s", error, exc_info=error)
            self.totals.failed += 1
            self._policy.failed(time.monotonic())
            self._answer(waiters, error=error)
            return
        except BaseException:
            self._answer(waiters, error=Unavailable("garbage collection is stopped"))
            raise
        took = time.monotonic() - started
        self._policy.finished(time.monotonic(), swept.pause)
        self.totals.succeeded += 1
        self.totals.seconds += took
        self.totals.last_seconds = took
        self.totals.deleted += swept.count
        self._answer(waiters, Collected(swept, took))

    @staticmethod
    def _answer(
        waiters: list[asyncio.Future[Collected]],
        collected: Collected | None = None,
        error: BaseException | None = None,
    ) -> None:
        for waiter in waiters:
            if waiter.done():
                continue
            if collected is not None:
                waiter.set_result(collected)
            elif error is not None:
                waiter.set_exception(error)
