"""The bytes of one ingest on their way to the disk: hashed as they come, written behind.

``write`` returns when the bytes are hashed and queued; a thread writes the queue to the file
meanwhile. The queue has a bound, at which ``write`` waits. What the disk refuses is told by the
next call; the bytes before it stay, and the ingest goes on from there. Nothing is durable before
``sync``. Used by the metadata room's content writer; one user at a time.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from supervisord.contracts.errors import Error, ResourceExhausted, Unknown

from .behind import Behind

T = TypeVar("T")

FLUSH_EVERY = 32 << 20
"""Bytes after which the disk is told to begin, so that the commit need not wait for all of it."""

_INLINE_HASH = 32 << 10
_REHASH_CHUNK = 1 << 20
log = logging.getLogger(__name__)

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Ingest:
    """An open file that grows. Make it with ``open``, end it with ``close``."""

    def __init__(self, path: Path, algorithm: str, executor: Executor, together: Behind) -> None:
        """Blocks; use ``open``."""
        self._path = path
        self._executor = executor
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._algorithm = algorithm
        self._guard = threading.Lock()
        self._queue: deque[bytes | memoryview] = deque()
        self._behind = 0
        self._together = together
        self._drainer: Future[None] | None = None
        self._draining = False
        self._room: asyncio.Event | None = None
        self._failure: Error | None = None
        self._flush: Future[None] | None = None
        self._unflushed = 0
        try:
            self._rehash()
        except BaseException:
            os.close(self._descriptor)
            raise

    @classmethod
    async def open(
        cls, path: Path, algorithm: str, executor: Executor, together: Behind | None = None
    ) -> Ingest:
        """Opens or makes the file, and hashes what it has already. ``together`` counts the bytes
        that wait, with those of others.

        Raises ResourceExhausted (full disk), Unknown (I/O error)."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                executor, cls, path, algorithm, executor, together or Behind()
            )
        except OSError as error:
            raise translated(error) from error

    def digest(self) -> str:
        """The digest of all bytes so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    async def write(self, data: bytes | memoryview) -> None:
        """Appends. Raises ResourceExhausted (full disk), Unknown (I/O error)."""
        await self._raise_failure()
        if not data:
            return
        self._enqueue(data)
        self.offset += len(data)
        if len(data) <= _INLINE_HASH:
            self._hash.update(data)
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._hash.update, data)
        while self._behind > self._together.allowance():
            self._room = asyncio.Event()
            if self._behind > self._together.allowance():
                await self._room.wait()
        self._room = None

    async def truncate(self, size: int) -> None:
        """Drops all bytes from ``size`` on."""
        await self.settle()
        await self._run(partial(self._truncate, size))

    async def digest_as(self, algorithm: str) -> str:
        """The digest of all bytes under an algorithm, read again if it is another one."""
        if algorithm != self._algorithm:
            await self.settle()
            self._algorithm = algorithm
            await self._run(self._rehash)
        return self.digest()

    async def settle(self) -> None:
        """Waits until everything is written. Raises as ``write`` does."""
        await self._drained()
        await self._raise_failure()

    async def sync(self, then: Callable[[], T]) -> T:
        """Makes everything so far durable, then does ``then`` in the same thread. Raises as
        ``write`` does; if an early flush has failed, before ``then``."""
        await self.settle()
        if self._flush is not None:
            await asyncio.shield(asyncio.wrap_future(self._flush))
            await self._raise_failure()

        def durable() -> T:
            os.fsync(self._descriptor)
            return then()

        return await self._run(durable)

    async def close(self, *, durable: bool = False, updated_at: int = 0) -> None:
        """Writes what is queued, durably if wanted, and closes the file, whose time of the last
        write becomes ``updated_at`` (nanoseconds; 0 leaves the kernel's); a second time does
        nothing. What the disk refuses is logged: the bytes that it has are those of ``open``."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            await self._drained()
            if self._flush is not None:
                await asyncio.shield(asyncio.wrap_future(self._flush))
            if durable and self._failure is None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._executor, self._start_disk, descriptor)
            if updated_at:
                self._stamp(descriptor, updated_at)
        finally:
            os.close(descriptor)
        if self._failure is not None:
            log.warning("%s: %s", self._path, self._failure)

    def _stamp(self, descriptor: int, updated_at: int) -> None:
        """The kernel's own time of a write is that of its last tick, and so may be earlier."""
        try:
            os.utime(descriptor, ns=(updated_at, updated_at))
        except OSError as error:
            log.warning("%s: %s", self._path, error)

    async def _run(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, work)
        except OSError as error:
            raise translated(error) from error

    async def _drained(self) -> None:
        if self._drainer is None:
            return
        if self._drainer.done():
            self._drainer.result()
        else:
            await asyncio.shield(asyncio.wrap_future(self._drainer))

    async def _raise_failure(self) -> None:
        """Tells a failure of the thread once, with offset and digest back at what is kept."""
        if self._failure is None:
            return
        await self._drained()
        failure, self._failure = self._failure, None
        await self._run(self._rehash)
        raise failure

    # Threads -------------------------------------------------------------------------------

    def _enqueue(self, data: bytes | memoryview) -> None:
        with self._guard:
            self._queue.append(data)
            self._behind += len(data)
            self._together.add(len(data))
            if self._draining:
                return
            self._draining = True
        # Nobody waits for it most of the time: it need not wake the loop when it has ended.
        loop = asyncio.get_running_loop()
        self._drainer = self._executor.submit(self._drain, loop, self._descriptor)

    def _drain(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        while True:
            with self._guard:
                if not self._queue:
                    self._draining = False
                    return
                data = self._queue.popleft()
            try:
                if self._failure is None:
                    self._append(descriptor, data)
            except OSError as error:
                self._failure = translated(error)
            with self._guard:
                self._behind -= len(data)
                self._together.add(-len(data))
            if self._room is not None and self._behind <= self._together.allowance() // 2:
                loop.call_soon_threadsafe(self._make_room)

    def _append(self, descriptor: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(descriptor, view, self._written)
            self._written += done
            view = view[done:]
        self._unflushed += len(data)
        if self._unflushed >= FLUSH_EVERY and (self._flush is None or self._flush.done()):
            self._unflushed = 0
            self._flush = self._executor.submit(self._start_disk, descriptor)

    def _start_disk(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            # The kernel tells an error only once: the commit must not miss it.
            self._failure = translated(error)

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self._rehash()

    def _rehash(self) -> None:
        """Sets offset and digest by what the file has."""
        self._hash = hashlib.new(self._algorithm, usedforsecurity=False)
        self.offset = 0
        while data := os.pread(self._descriptor, _REHASH_CHUNK, self.offset):
            self._hash.update(data)
            self.offset += len(data)
        self._written = self.offset


def translated(error: OSError) -> Error:
    """What is told of a disk that refuses."""
    if error.errno in _FULL:
        return ResourceExhausted(f"content: no space left for the ingest: {error.strerror}")
    if error.errno in _NO_ROOM:
        return ResourceExhausted(f"content: cannot open the ingest: {error.strerror}")
    return Unknown(f"content: could not write the ingest: {error.strerror}")
