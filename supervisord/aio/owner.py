"""Owned tasks: the only place where the daemon and the shims spawn asyncio tasks.

A ``TaskOwner`` has a name, knows its unfinished tasks, forgets the finished ones, logs what they
raise, and can be closed: from then on it refuses newcomers, gives what runs a time to end, and
cancels the rest. Undo work that must outlive a cancelled caller goes through ``shielded``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from supervisord.contracts.errors import Error, Unavailable

T = TypeVar("T")

log = logging.getLogger(__name__)


class TaskOwner:
    """Spawns tasks and answers for them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts ``work``; a failure that nobody awaits is logged. Raises RuntimeError once
        closed."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self.name} is closed: {name} was not started")
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def shielded(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Awaits ``work`` in a task of its own, which goes on if the caller is cancelled.

        Raises Unavailable once closed: who asks this late is told so."""
        if self._closed:
            work.close()
            raise Unavailable(f"{self.name} is closed: {name} was not started")
        return await asyncio.shield(self.spawn(work, name))

    async def close(self, grace: float = 0.0) -> None:
        """Refuses newcomers, waits ``grace`` seconds, cancels what is left and waits for it."""
        self._closed = True
        current = asyncio.current_task()
        left = {task for task in self._tasks if task is not current}
        if left and grace > 0:
            _, left = await asyncio.wait(left, timeout=grace)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            fields = {"task": task.get_name(), "error": error}
            if isinstance(error, Error):  # as a rule somebody awaits it and is told
                log.debug("task failed", extra=fields)
            else:
                log.error("task failed", exc_info=error, extra=fields)
