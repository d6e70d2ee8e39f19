"""An open blob; implements contracts.content.Reader."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from pathlib import Path

_INLINE = 1 << 20
_buffers = threading.local()
_NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS)


class BlobReader:
    """Holds a descriptor, so that the blob stays readable when it is deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        """The descriptor, for those who pass it on or use sendfile."""
        return self._descriptor

    async def read(self, offset: int, size: int, head: bytes = b"") -> bytes:
        """Up to ``size`` bytes at ``offset`` behind ``head``; no bytes at the end."""
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
                    raise
        data = await asyncio.to_thread(os.pread, self._descriptor, size, offset)
        return head + data if head else data

    def close(self) -> None:
        """Closes the descriptor; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _room(size: int) -> memoryview:
    """A buffer for up to _INLINE bytes, until the next call in this thread: a new one would have
    to be cleared each time, and each of many readers would have its own."""
    buffer: memoryview | None = getattr(_buffers, "room", None)
    if buffer is None:
        buffer = _buffers.room = memoryview(bytearray(_INLINE))
    return buffer[:size]
