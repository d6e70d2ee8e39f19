"""An open blob; implements contracts.content.Reader."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from pathlib import Path

from supervisord.contracts.errors import DataLoss, Error, NotFound, ResourceExhausted

_INLINE = 1 << 20
_buffers = threading.local()
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS)


class BlobReader:
    """Holds a descriptor, so that the blob stays readable when it is deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound, DataLoss (the disk cannot), ResourceExhausted (no descriptor left)."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"content {path.name}: the blob is missing on disk: not found") from None
        except OSError as error:
            raise _translated(path, error) from error
        self._path = path
        self.size = os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        """The descriptor, for those who pass it on or use sendfile."""
        return self._descriptor

    async def read(self, offset: int, size: int, head: bytes = b"") -> bytes:
        """Up to ``size`` bytes at ``offset`` behind ``head``; no bytes at the end. Raises
        DataLoss where the disk cannot give them."""
        size = max(min(size, self.size - offset), 0)
        if size == 0:
            return head
        if size <= _INLINE:
            # What the page cache has costs one copy; only the disk is worth a thread.
            buffer = _room(size)
            try:
                if os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT) == size:
                    return b"".join((head, buffer))
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise _translated(self._path, error) from error
        try:
            data = await asyncio.to_thread(self._wait_for, offset, size)
        except OSError as error:
            raise _translated(self._path, error) from error
        return head + data if head else data

    def _wait_for(self, offset: int, size: int) -> bytes:
        """All of these bytes, or fewer at the end of the file."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Closes the descriptor; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _translated(path: Path, error: OSError) -> Error:
    if error.errno in _NO_ROOM:
        return ResourceExhausted(f"content {path.name}: cannot open the blob: {error.strerror}")
    return DataLoss(f"content {path.name}: cannot read the blob: {error.strerror}")


def _room(size: int) -> memoryview:
    """A buffer for up to _INLINE bytes, until the next call in this thread: a new one would have
    to be cleared each time, and each of many readers would have its own."""
    buffer: memoryview | None = getattr(_buffers, "room", None)
    if buffer is None:
        buffer = _buffers.room = memoryview(bytearray(_INLINE))
    return buffer[:size]
