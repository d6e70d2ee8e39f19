"""Copies extended attributes from one file to another. Used by unpack workers and snapshotters."""

from __future__ import annotations

import errno
import os

_NONE_HERE = (errno.EOPNOTSUPP, errno.ENODATA)


def copy_xattrs(
    source: int | str | bytes,
    target: int | str | bytes,
    *,
    without: tuple[str, ...] = (),
    tolerated: tuple[int, ...] = (),
) -> None:
    """Copies all whose names do not begin with one of ``without``; paths are not followed.

    A filesystem without xattrs has none to copy. Errors while setting one are raised (OSError)
    unless their number is ``tolerated``."""
    follow_source = isinstance(source, int)
    follow_target = isinstance(target, int)
    try:
        names = os.listxattr(source, follow_symlinks=follow_source)
    except OSError as error:
        if error.errno in (*_NONE_HERE, *tolerated):
            return
        raise
    for name in names:
        if name.startswith(without):
            continue
        try:
            value = os.getxattr(source, name, follow_symlinks=follow_source)
            os.setxattr(target, name, value, follow_symlinks=follow_target)
        except OSError as error:
            if error.errno not in (errno.ENODATA, *tolerated):
                raise
