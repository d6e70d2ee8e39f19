"""What follows a delete, behind its answer: the end of the shim, and the folder that is trash.

It begins a moment later: whoever deletes a task has more to ask as a rule, and at once. A new task
of the same name waits for it, because the end of the shim takes down the root filesystem, which may
be the next one's. The task manager alone uses this.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from supervisord.aio.owner import TaskOwner

from .burial import Burial
from .shim import Shim
from .task import Task

_BREATH_SECONDS = 0.01
_LONGEST_SECONDS = 2.0


class Clearing:
    """Of all tasks of a manager."""

    def __init__(self, owner: TaskOwner, burial: Burial) -> None:
        self._owner = owner
        self._burial = burial
        self._under_way: dict[tuple[str, str], tuple[asyncio.Task[None], asyncio.Event]] = {}

    def begin(self, task: Task, shim: Shim, trash: str) -> None:
        """For a task that is deleted, and whose bundle is trash now."""
        key, hurry = task.key, asyncio.Event()
        work = self._owner.spawn(self._clear(task, shim, trash, hurry), f"clear {task.id}")
        self._under_way[key] = work, hurry
        work.add_done_callback(lambda _: self._forget(key, work))

    async def done(self, key: tuple[str, str]) -> None:
        """Waits a moment for what is left of earlier tasks of this name."""
        if key in self._under_way:
            work, hurry = self._under_way[key]
            hurry.set()
            await asyncio.wait([work], timeout=_LONGEST_SECONDS)

    def _forget(self, key: tuple[str, str], work: asyncio.Task[None]) -> None:
        if key in self._under_way and self._under_way[key][0] is work:
            del self._under_way[key]

    async def _clear(self, task: Task, shim: Shim, trash: str, hurry: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_BREATH_SECONDS):
                await hurry.wait()
        await self._burial.end_shim(shim, task.record, last=task.was_last)
        await self._burial.empty(trash)
