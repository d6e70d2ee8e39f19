"""One daemon per root, and per state: a locked file in each that tells who holds it.

The kernel drops the lock when the holder dies, however it dies, so there is nothing to clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_WIDTH = 10  # of a pid: the file keeps its size, so that it needs no room when the disk is full


class RootTaken(Exception):
    """Another daemon runs on this root or state; the text says which."""


class RootLock:
    """Held from ``take`` until ``drop``, or until the process ends."""

    def __init__(self, folder: str, noun: str = "root") -> None:
        """``noun`` is the flag that names the folder, for the message."""
        self.path = Path(folder) / "lock"
        self._noun = noun
        self._fd = -1

    def take(self) -> None:
        """Raises RootTaken with the holder's pid."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise RootTaken(
                f"another supervisord (pid {holder}) runs on {self._noun} {self.path.parent}: "
                f"stop it first, or give this one another --{self._noun}"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the pid, too
            os.pwrite(fd, f"{os.getpid():<{_WIDTH}}\n".encode(), 0)
        self._fd = fd

    def drop(self) -> None:
        """The file stays: removing it would let two daemons hold two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
