"""Room on the disk that is kept for deletes, because a full disk must not forbid them.

Most of it is the log itself: it has at least ``LOG`` bytes from the start on, which are written
over again and again, and with less than ``LEAST`` bytes free on the disk only deletes may write
there. So nobody who takes every free byte takes theirs. Beside the database lie files that are
given up when that is not enough, for a checkpoint that needs room, or for the log of a daemon that
starts: one holds bytes, the others next to nothing but their inodes. What is missing is laid down
again when there is room. Used by ``Database`` alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 2 << 20
"""Bytes kept for deletes on a full disk."""

LOG = 1 << 20
"""Bytes of the log that are there before they are needed."""

LEAST = 1 << 20
"""Free bytes below which only deletes may write."""

LOW = 16 << 20
"""Free bytes below which what is in the log is brought into the database at once."""

_HEADER = 4096
_INDEX = 128 << 10
_SMALLEST = 64 << 10
_INODES = 2


class Reserve:
    """The files of one database."""

    def __init__(self, database: str) -> None:
        self._log = Path(f"{database}-wal")
        self._kept = Path(f"{database}.reserve.log")
        self._index = f"{database}-shm"
        self._index_fd = -1
        self._folder = str(Path(database).parent)
        self._is_root = os.geteuid() == 0
        self._bytes = Path(f"{database}.reserve")
        self._spares = [Path(f"{database}.reserve.{number}") for number in range(1, _INODES + 1)]
        self.is_whole = False

    def lay(self) -> None:
        """Makes what is missing, or as much of it as there is room for."""
        size = BYTES
        while not _sized(self._bytes, size) and size > _SMALLEST:
            size //= 2
        self.is_whole = size == BYTES
        for spare in self._spares:
            self.is_whole &= _sized(spare, 0)

    def lay_log(self) -> None:
        """Makes the log as long as it has to be. SQLite takes zeros for the end of what is in it.
        Written, and not only reserved, so that syncing what is written over them is cheap."""
        with contextlib.suppress(OSError), self._log.open("ab", buffering=0) as file:
            missing = LOG - os.fstat(file.fileno()).st_size
            while missing > 0:
                missing -= file.write(bytes(missing)) or missing

    def keep_log(self) -> None:
        """Before the last connection is closed: SQLite removes the log then, and somebody else
        would take its room. A second name keeps it."""
        with contextlib.suppress(OSError):
            self._kept.unlink(missing_ok=True)
            self._kept.hardlink_to(self._log)

    def trim_log(self) -> None:
        """After the last connection was closed: no more of the log is kept than is needed. Where
        SQLite has left it, it is still in use."""
        with contextlib.suppress(OSError):
            if not self._log.exists() and self._kept.stat().st_size > LOG:
                os.truncate(self._kept, LOG)

    def bring_log(self) -> None:
        """Before the first connection is opened: the log that was kept is the log again. What was
        in it is in the database, and must not be read once more: zeros say that it is empty."""
        with contextlib.suppress(OSError):
            if self._log.exists():
                self._kept.unlink()
                return
            with self._kept.open("r+b", buffering=0) as file:
                file.write(bytes(_HEADER))
                os.fsync(file.fileno())
            self._kept.rename(self._log)

    def hold_index(self) -> None:
        """Takes disk for all of the log's index, which is memory-mapped: where blocks are smaller
        than pages, SQLite makes files with holes, and a full disk would then end the process with
        SIGBUS. The file stays open until ``release``, because closing it would drop the locks that
        this process has on it. Raises OSError."""
        if self._index_fd < 0:
            self._index_fd = os.open(self._index, os.O_RDWR | os.O_CLOEXEC)
        os.posix_fallocate(self._index_fd, 0, _INDEX)

    def release(self) -> None:
        """After the last connection was closed."""
        descriptor, self._index_fd = self._index_fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def free(self) -> int:
        """Bytes that can be written to the disk; a lot where that cannot be known."""
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return 1 << 62
        if not found.f_blocks:
            return 1 << 62
        if not self._is_root:
            return found.f_bavail * found.f_frsize
        # Root may use what is reserved for root, but not what ext4 keeps for its own needs, which
        # f_bfree does not tell: 2 % of the blocks, and 4096 of them at the most.
        own = min(4096, found.f_blocks // 50)
        return max(0, found.f_bfree - own) * found.f_frsize

    def give_up(self) -> bool:
        """Whether there was anything to give up."""
        gave = False
        for path in (self._bytes, *self._spares):
            with contextlib.suppress(OSError):
                path.unlink()
                gave = True
        self.is_whole = False
        return gave


def _sized(path: Path, size: int) -> bool:
    """Whether the file is there with that many bytes of disk, made now if need be."""
    try:
        with path.open("ab") as file:
            if os.fstat(file.fileno()).st_size < size:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    return True
