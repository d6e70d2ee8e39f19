"""FIFOs: how clients and containers exchange their stdio.

A reader that opens without blocking never waits for a writer. A writer opens for reading too, so
that it neither waits for a reader nor is killed by one that goes away and comes back.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from supervisord.contracts.errors import InvalidArgument, NotFound

F_SETPIPE_SZ = 1031


def make(path: str, mode: int = 0o700) -> None:
    """Makes a FIFO, or leaves one that is there. Raises InvalidArgument for another file."""
    try:
        os.mkfifo(path, mode)
    except FileExistsError:
        if not is_fifo(path):
            raise InvalidArgument(f"{path!r} exists and is no fifo") from None


def is_fifo(path: str) -> bool:
    """Whether ``path`` is a FIFO (a symlink to one counts)."""
    return Path(path).is_fifo()


def open_read(path: str) -> int:
    """A non-blocking descriptor to read from; it is at its end while no writer has it open.
    Raises NotFound."""
    return _open(path, os.O_RDONLY)


def open_write(path: str) -> int:
    """A non-blocking descriptor to write to, which keeps the FIFO open on both sides.
    Raises NotFound."""
    return _open(path, os.O_RDWR)


def open_both(path: str) -> int:
    """A non-blocking descriptor to read from that never sees an end. Raises NotFound."""
    return _open(path, os.O_RDWR)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"fifo {path!r}: not found") from None


def set_size(fd: int, size: int = 1 << 20) -> int:
    """Asks for a pipe of ``size`` bytes, and answers what it has now (less where the user's
    limit is lower)."""
    try:
        return fcntl.fcntl(fd, F_SETPIPE_SZ, size)
    except PermissionError:
        return fcntl.fcntl(fd, F_SETPIPE_SZ + 1)
