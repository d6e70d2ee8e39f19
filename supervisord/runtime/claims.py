"""Tasks that nobody has come for: given to a retry, replaced, or removed after their time.

A task is unclaimed when all who asked for it had left before it was made. Its bundle says so until
the first use, so that a later daemon knows too. A task that an earlier daemon has made may be
unknown to its creator as well, if that daemon died before it could answer: as long as it has not
been started, a request equal to the one it was made for gets it. It is never removed, because it
looks no different when its creator was answered. Called by the task manager.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import AlreadyExists, Error, NotFound, Unavailable
from supervisord.contracts.tasks import Exit, Status

from .orders import Order
from .recovery import Recovery, is_gone
from .shim import Shim
from .task import Task

log = logging.getLogger(__name__)

_REACH_SECONDS = 10.0
UNCLAIMED_SECONDS = 30.0
"""How long a task whose creator went away is kept for a retry."""


class Claims:
    """Who gets the tasks that are there already. ``delete`` ends a task by its connected shim; the
    caller holds the lock of the task's name."""

    def __init__(
        self,
        tasks: Mapping[tuple[str, str], Task],
        locks: KeyedLock,
        watching: TaskOwner,
        recovery: Recovery,
        delete: Callable[[Task, Shim], Awaitable[Exit]],
    ) -> None:
        self._tasks = tasks
        self._locks = locks
        self._watching = watching
        self._recovery = recovery
        self._delete = delete

    @asynccontextmanager
    async def way(self, order: Order) -> AsyncIterator[Task | None]:
        """Holds the lock of the order's name, once no task stands in the way: yields the task that
        the order gets, or None if it is to be made.

        Raises AlreadyExists, Unavailable (the shim of a task that it might get)."""
        while True:
            existing = self._tasks.get(order.key)
            if existing is not None and _may_yield(existing, order):
                with suppress(NotFound):
                    await existing.reach(_REACH_SECONDS)  # outside the lock, which a new shim needs
            async with self._locks.hold(order.key):
                order.begun = True
                existing = self._tasks.get(order.key)
                shim = existing.shim if existing is not None else None
                try:
                    claimed = existing and await self._settle(existing, shim, order)
                except Unavailable:
                    if shim is not None and not shim.is_lost:
                        raise
                    continue  # it may have another soon
                yield claimed
                return

    async def _settle(self, task: Task, shim: Shim | None, order: Order) -> Task | None:
        """The task, if the order gets it; None once it is gone. Raises AlreadyExists, Unavailable,
        what a shim may answer."""
        if not _may_yield(task, order):
            if shim is not None and await is_gone(task):
                self._recovery.drop(task, shim)
                return None
            raise _exists(order)
        if shim is None:
            raise Unavailable(f"task {task.id}: its shim does not answer")
        if task.record.order == order.digest:
            return await self._claim(task, shim, order)
        with suppress(NotFound):
            await self._delete(task, shim)
        return None

    async def _claim(self, task: Task, shim: Shim, order: Order) -> Task | None:
        try:
            status = (await shim.state()).status
        except NotFound:
            self._recovery.drop(task, shim)
            return None
        if not task.is_unclaimed and not (task.may_be_lost and status is Status.CREATED):
            raise _exists(order)
        if not order.is_abandoned:
            task.use()
        return task

    def keep(self, task: Task) -> None:
        """Keeps an unclaimed task for its time; any other is none of ours."""
        if task.is_unclaimed:
            self._watching.spawn(self._keep(task), f"unclaimed {task.id}")

    async def _keep(self, task: Task) -> None:
        while task.is_unclaimed and not task.is_over:
            await asyncio.sleep(UNCLAIMED_SECONDS)
            try:
                await task.reach(None)  # not under the lock, which a new shim needs
                async with self._locks.hold(task.key):
                    shim = task.shim
                    if task.is_unclaimed and not task.is_over and shim is not None:
                        log.info("task %s is removed: its creator went away", task.id)
                        await self._delete(task, shim)
            except Error as error:
                log.warning("unclaimed task %s: %s", task.id, error)


def _may_yield(task: Task, order: Order) -> bool:
    """Whether the order may get the task, or have it replaced."""
    return task.is_unclaimed or (task.may_be_lost and task.record.order == order.digest)


def _exists(order: Order) -> AlreadyExists:
    return AlreadyExists(f"task {order.container.id}: already exists")
