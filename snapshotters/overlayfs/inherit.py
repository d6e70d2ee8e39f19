"""What a layer that was extracted without its parent makes up for when it gets one at commit.

Extraction marks directories that the layer did not bring itself. Here they take owner, mode, times
and xattrs from the parent, as they would have, had it been there from the start. Called in a
thread, before the commit; doing it twice does no harm.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from supervisord.linux.lowers import take_after

MARKS = ("trusted.overlay.supervisord.implied", "user.overlay.supervisord.implied")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def inherit(tree: str, lowers: Sequence[str]) -> None:
    """Treats all marked directories below ``tree``, for parents ``lowers``, nearest first.

    Raises OSError."""
    root = os.open(tree, _FOLDER)
    below: list[int] = []
    try:
        if not _marked(root):
            return
        for lower in lowers:
            below.append(os.open(lower, _FOLDER))
        # Deepest first: giving a directory its times must be the last thing that happens in it.
        for path, folders, _, fd in os.fwalk(b".", topdown=False, dir_fd=root):
            del folders
            if path != b"." and _marked(fd):
                times = take_after(fd, path[2:], below)
                if times is not None:
                    os.utime(fd, ns=times)
        for _, _, _, fd in os.fwalk(b".", topdown=False, dir_fd=root):
            _unmark(fd)  # the root comes last: a crash before that leaves it to be done again
    finally:
        for fd in (*below, root):
            os.close(fd)


def _marked(fd: int) -> bool:
    return any(mark in os.listxattr(fd) for mark in MARKS)


def _unmark(fd: int) -> None:
    for mark in MARKS:
        try:
            os.removexattr(fd, mark)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
