"""A layer on its way from the network into an unpack worker: bytes go through a pipe.

The worker inflates, hashes and extracts meanwhile; the pipe's size is all that lies in between, so
whoever feeds it waits for the worker. A worker that ends early says why in its result.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from supervisord.contracts.images import Descriptor
from supervisord.contracts.workers import WorkerSpawner

from . import media, work

_SIZE = 1 << 20


class Feed:
    """Implements contracts.diff.Application."""

    def __init__(self, fd: int, results: work.Pipe) -> None:
        self._fd = fd
        self._results = results

    async def write(self, data: bytes | memoryview) -> None:
        """See the contract."""
        view = memoryview(data)
        while view and self._fd >= 0:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._writable()
            except BrokenPipeError:
                self.close()  # why is told by the result

    async def finish(self) -> Descriptor:
        """See the contract."""
        self.close()
        outcome = await self._results.outcome()
        return Descriptor(media.OCI, outcome.digest, outcome.size)

    def close(self) -> None:
        """The end of what is written; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._fd)


@asynccontextmanager
async def feeding(
    workers: WorkerSpawner, arguments: Mapping[str, object], payloads: Sequence[int] = ()
) -> AsyncIterator[Feed]:
    """A worker that reads what is written; it gives up when the block is left before its end."""
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    feed: Feed | None = None
    try:
        os.set_blocking(sending, False)
        with contextlib.suppress(PermissionError):  # the user's pipes have used up their share
            fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, _SIZE)
        async with work.started(workers, arguments, [receiving, *payloads]) as results:
            os.close(receiving)
            receiving = -1
            feed = Feed(sending, results)
            yield feed
    finally:
        if receiving >= 0:
            os.close(receiving)
        if feed is not None:
            feed.close()
        else:
            os.close(sending)
