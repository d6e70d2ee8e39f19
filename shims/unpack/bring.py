"""Brings a file of the layers below into the upper directory of an overlay, as the kernel does
where somebody makes a hard link to it in the mounted overlay."""

# Plain os calls, on bytes.
# ruff: noqa: PTH211
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from supervisord.linux.openat import open_in_root
from supervisord.linux.xattr import copy_xattrs

_NOT_COPIED = ("trusted.", "user.overlay.")
_MARKS = (".overlay.opaque", ".overlay.redirect")
_METACOPY = ".overlay.metacopy"
_PIECE = 1 << 30


def is_hidden(path: bytes) -> bool:
    """Whether the layer itself says that nothing of the layers below is to be seen at ``path``."""
    while path not in (b"", b"/"):
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            if not stat.S_ISDIR(found.st_mode):
                return True
            if any(name.endswith(_MARKS) for name in os.listxattr(path, follow_symlinks=False)):
                return True
        path = path.rpartition(b"/")[0]
    return False


def bring_up(path: bytes, lowers: Sequence[int]) -> bool:
    """Makes ``path``, whose folder is there, a copy of the file or link that it is in the nearest
    of the ``lowers`` that has it. False where none has, or it is something else. Raises OSError."""
    for lower in lowers:
        try:
            probe = open_in_root(lower, path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        try:
            found = os.fstat(probe)
            if stat.S_ISREG(found.st_mode):
                return _copy_file(lower, path, found)
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(b"", dir_fd=probe), path)
                os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
                return True
            return False
        finally:
            os.close(probe)
    return False


def _copy_file(lower: int, path: bytes, found: os.stat_result) -> bool:
    source = open_in_root(lower, path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if any(name.endswith(_METACOPY) for name in os.listxattr(source)):
            return False  # its contents are in a layer below that one
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(path, flags, 0o600)
        try:
            while os.sendfile(target, source, None, _PIECE):
                pass
            os.fchown(target, found.st_uid, found.st_gid)
            copy_xattrs(source, target, without=_NOT_COPIED)
            os.fchmod(target, stat.S_IMODE(found.st_mode))
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)
    return True
