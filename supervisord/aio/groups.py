"""Task groups whose failure is one error: the first, instead of a group of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Group:
    """Tasks that end with the block that they were started in."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts ``work``; when it fails the others are cancelled."""
        return self._group.create_task(work, name=name)


@asynccontextmanager
async def task_group() -> AsyncIterator[Group]:
    """An ``asyncio.TaskGroup`` that raises what went wrong first, as it was raised. What went
    wrong besides, while the others were cancelled, is its cause."""
    try:
        async with asyncio.TaskGroup() as group:
            yield Group(group)
    except BaseExceptionGroup as all_of_them:
        error: BaseException = all_of_them
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from all_of_them
