"""How much is downloaded at a time: requests to one host, and bytes a second of all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Limits:
    """``per_host``: most requests for blobs to one host at a time; ``bandwidth``: bytes a second of
    all downloads, 0 for any."""

    def __init__(self, per_host: int = 8, bandwidth: int = 0) -> None:
        self._per_host = per_host
        self._bandwidth = bandwidth
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}
        self._due = 0.0

    @asynccontextmanager
    async def request(self, host: str) -> AsyncIterator[None]:
        """Waits for its turn."""
        turns, users = self._hosts.get(host) or (asyncio.Semaphore(self._per_host), 0)
        self._hosts[host] = (turns, users + 1)
        try:
            async with turns:
                yield
        finally:
            users = self._hosts[host][1] - 1
            if users:
                self._hosts[host] = (turns, users)
            else:
                del self._hosts[host]

    async def take(self, count: int) -> None:
        """Returns when that many bytes may have been downloaded."""
        if not self._bandwidth:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + count / self._bandwidth
        if self._due > now:
            await asyncio.sleep(self._due - now)
