"""Asks an ext4 without a journal to spread the folders of a folder over the disk.

It then takes each for the top of a tree of its own (``chattr +T``, the file attribute FS_TOPDIR_FL
of ``linux/fs.h``) and looks for an emptier group of inodes for it. See docs/decisions/0031 for what
that is worth, and why only there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_TOPDIR = 0x00020000
_UNABLE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EROFS)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def spread(path: str) -> bool:
    """Answers whether the folder ``path`` is on such a file system and has the mark now; it is
    only ever a hint. Raises OSError."""
    if not _lacks_journal(Path(path).stat().st_dev):
        return False
    fd = os.open(path, _FOLDER)
    try:
        (flags,) = struct.unpack("=I", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))
        if not flags & _TOPDIR:
            fcntl.ioctl(fd, _SETFLAGS, struct.pack("=I", flags | _TOPDIR))
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    finally:
        os.close(fd)
    return True


def _lacks_journal(device: int) -> bool:
    """Whether it is an ext4, and sysfs says that no task of the kernel writes a journal for it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        name = Path(f"/sys/dev/block/{number}").resolve().name
        return Path(f"/sys/fs/ext4/{name}/journal_task").read_text().strip() == "<none>"
    except OSError:
        return False
