"""A bounded queue between two tasks that both may end.

``finish`` lets the receiver have what is left, then None; ``fail`` ends both sides at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from supervisord.contracts.errors import Cancelled, Error

T = TypeVar("T")


class Channel(Generic[T]):
    """``limit`` is how many values may wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: deque[T] = deque()
        self._finished = False
        self._failed: Error | None = None
        self._changed: asyncio.Future[None] | None = None

    async def put(self, value: T) -> None:
        """Waits for room. Raises Cancelled once it has finished, or why it has failed."""
        while True:
            self._check()
            if self._finished:
                raise Cancelled("the stream is closed")
            if len(self._values) < self._limit:
                break
            await self._change()
        self._values.append(value)
        self._notify()

    async def get(self) -> T | None:
        """The next value; None after the last. Raises why it has failed."""
        while not self._values:
            self._check()
            if self._finished:
                return None
            await self._change()
        self._check()
        value = self._values.popleft()
        self._notify()
        return value

    def finish(self) -> None:
        """Nothing more is put."""
        self._finished = True
        self._notify()

    def fail(self, error: Error) -> None:
        """Whoever uses it from now on is told; what is left in it is dropped."""
        if self._failed is None:
            self._failed = error
            self._values.clear()
            self._notify()

    def _check(self) -> None:
        if self._failed is not None:
            raise type(self._failed)(self._failed.message)

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)
