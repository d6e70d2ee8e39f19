"""Opens paths inside a directory so that no symlink and no ``..`` leads out, and flushes file
systems. Used by unpack workers, which read what images wrote."""

from __future__ import annotations

import errno
import os
import struct

from . import syscalls

_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02
_TRIES = 8


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Opens ``path`` with the directory descriptor ``root`` taken for ``/`` (openat2).

    Raises OSError, and EAGAIN only when renames keep disturbing it."""
    resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    for attempt in range(1, _TRIES + 1):
        try:
            return syscalls.syscall(syscalls.SYS_OPENAT2, root, path + b"\0", how, len(how))
        except OSError as error:
            if error.errno != errno.EAGAIN or attempt == _TRIES:
                raise
    raise AssertionError("unreachable")


def syncfs(fd: int) -> None:
    """Writes the file system that ``fd`` is on to its disk. Raises OSError."""
    syscalls.syncfs(fd)
