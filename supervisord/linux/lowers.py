"""A directory takes the attributes that it has in the layers below.

Used by unpack workers for directories that an archive does not bring itself, and by the overlay
snapshotter when a layer gets its parent only at commit. Layers are hostile: paths are looked up
inside each of them, whatever links they hold.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from .openat import open_in_root
from .xattr import copy_xattrs

_OURS_ALONE = ("trusted.", "user.overlay.")


def take_after(target: int, path: bytes, lowers: Sequence[int]) -> tuple[int, int] | None:
    """Gives the open directory ``target`` owner, mode and xattrs of ``path`` in the nearest of the
    ``lowers`` (open directories, nearest first) that has it; answers its access and modification
    times in ns. None, and nothing changed, where no layer has it as a directory. Raises OSError."""
    for lower in lowers:
        try:
            probe = open_in_root(lower, path, os.O_PATH)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            found = os.fstat(probe)
        finally:
            os.close(probe)
        if not stat.S_ISDIR(found.st_mode):
            return None  # deleted or replaced in that layer
        source = open_in_root(lower, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchown(target, found.st_uid, found.st_gid)
            copy_xattrs(source, target, without=_OURS_ALONE)
            os.fchmod(target, stat.S_IMODE(found.st_mode))
        finally:
            os.close(source)
        return found.st_atime_ns, found.st_mtime_ns
    return None
