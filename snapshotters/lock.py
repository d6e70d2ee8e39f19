"""One process per root: two would give the same ids to different snapshots."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from supervisord.contracts.errors import FailedPrecondition


@contextmanager
def hold(path: str) -> Iterator[None]:
    """Holds the lock file, made if need be; a process that dies has let go of it.

    Raises FailedPrecondition if another process holds it, OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder = os.path.dirname(path)  # noqa: PTH120
            raise FailedPrecondition(f"root: another process has {folder}") from None
        yield
    finally:
        os.close(descriptor)
