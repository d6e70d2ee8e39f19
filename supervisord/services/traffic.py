"""The bytes that streams move through this process's memory, and what becomes of it afterwards.

While streams run, freed buffers are kept for the next message (``linux.heap``); once the last of
them has ended, they go back to the kernel, so that a daemon that has moved gigabytes is as small
as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from supervisord.linux import heap

_WORTH = 16 << 20
"""Bytes moved, from which on it is worth looking for what can be given back."""


class Traffic:
    """Streams that are under way. Each tells that it begins, and how much it has moved in the
    end."""

    def __init__(self, give_back: Callable[[], None] = heap.give_back) -> None:
        self._give_back = give_back
        self._streams = 0
        self._moved = 0

    def began(self) -> None:
        self._streams += 1

    async def ended(self, moved: int) -> None:
        """The last one gives memory back, if together they have moved enough for that."""
        self._streams -= 1
        self._moved += moved
        if self._streams == 0 and self._moved >= _WORTH:
            self._moved = 0
            await asyncio.to_thread(self._give_back)
