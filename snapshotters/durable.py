"""Waits until directory trees are on the disk; called by snapshotters, always in a thread.

A few files are synced by themselves. Of many each would be a flush of the disk, so the file system
is synced as a whole, which also waits for what others have written to it.
"""

# Plain os calls, because this runs for every file.
from __future__ import annotations

import os
import stat

from supervisord.linux.openat import syncfs

FEW = 16
"""Inodes up to which a tree is synced by itself."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def sync_tree(tree: str, inodes: int, top: str) -> None:
    """Everything in ``tree``, which has about that many inodes, is on the disk afterwards, and so
    are the folders that lead to it from ``top``.

    Raises OSError, also for what could not be written earlier."""
    fd = os.open(tree, _FOLDER)
    try:
        if inodes > FEW:
            syncfs(fd)
            return
        _sync_few(fd)
    finally:
        os.close(fd)
    folder = tree
    while folder != top:
        folder = folder.rpartition("/")[0]
        fd = os.open(folder, _FOLDER)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_few(fd: int) -> None:
    """An open folder, after all that is in it. What vanishes meanwhile needs no sync."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in found:
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            continue  # nothing but a name with attributes, which the folder has
        try:
            inner = os.open(name, _FOLDER if stat.S_ISDIR(mode) else _FILE, dir_fd=fd)
        except FileNotFoundError:
            continue
        try:
            if stat.S_ISDIR(mode):
                _sync_few(inner)
            else:
                os.fsync(inner)
        finally:
            os.close(inner)
    os.fsync(fd)
