"""Room on the disk that is kept for deletes: files beside a database, given up when it is full.

The first file holds bytes; the others hold next to nothing but their inodes, which the log and its
index need where a file system has run out of those. What is missing is laid down again when there
is room. Used by ``Database`` alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 2 << 20
"""Bytes kept for deletes on a full disk."""

_LEAST = 64 << 10
_INODES = 2


class Reserve:
    """The files of one database."""

    def __init__(self, database: str) -> None:
        self._bytes = Path(f"{database}.reserve")
        self._spares = [Path(f"{database}.reserve.{number}") for number in range(1, _INODES + 1)]
        self.is_whole = False

    def lay(self) -> None:
        """Makes what is missing, or as much of it as there is room for."""
        size = BYTES
        while not _sized(self._bytes, size) and size > _LEAST:
            size //= 2
        self.is_whole = size == BYTES
        for spare in self._spares:
            self.is_whole &= _sized(spare, 0)

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
