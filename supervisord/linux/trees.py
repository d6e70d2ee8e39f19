"""Removes directory trees that a layer has filled. Used by unpack workers.

However deep a tree is (a container can nest folders until the disk is full), it takes two
descriptors, no recursion, and no path longer than one name. Links are removed, never followed.
"""

# Plain os calls, also on bytes.
# ruff: noqa: PTH106
from __future__ import annotations

import errno
import os
from dataclasses import dataclass

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A folder on the way down: which one it is, and the folders in it still to go."""

    identity: tuple[int, int]
    folders: list[str]


def remove_tree(path: str | bytes) -> None:
    """Removes the directory ``path`` and all below it. Raises OSError, ESTALE among them when a
    folder on the way was moved elsewhere meanwhile."""
    fd = os.open(path, _FOLDER)
    try:
        levels = [_level(fd)]
        while levels:
            if levels[-1].folders:
                fd = _moved(fd, levels[-1].folders[-1])
                levels.append(_level(fd))
                continue
            levels.pop()
            if levels:
                fd = _moved(fd, "..")
                if _identity(fd) != levels[-1].identity:
                    raise OSError(errno.ESTALE, "it was moved while it was removed", path)
                os.rmdir(levels[-1].folders.pop(), dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(path)


def _moved(fd: int, name: str) -> int:
    """The folder ``name`` seen from ``fd``, in its place."""
    other = os.open(name, _FOLDER, dir_fd=fd)
    os.dup2(other, fd, inheritable=False)
    os.close(other)
    return fd


def _level(fd: int) -> _Level:
    """Removes what is no folder."""
    folders = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return _Level(_identity(fd), folders)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
