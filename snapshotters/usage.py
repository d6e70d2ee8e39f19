"""How much disk a directory tree takes; called by snapshotters, always in a thread."""

# Plain os calls, because this runs for every file.
from __future__ import annotations

import errno
import os

from supervisord.contracts.snapshots import Usage

_BLOCK = 512
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONG = 3 << 10  # bytes of a path, of the 4096 that the kernel takes, from which on it starts anew
_STARTS = 100


def disk_usage(root: str) -> Usage:
    """Allocated bytes and inodes of ``root`` and all below it, each inode once.

    What vanishes during the walk is left out. Raises OSError if ``root`` cannot be read, or is
    deeper than 300 KiB of path."""
    walk = _Walk()
    top = os.open(root, _FOLDER)
    try:
        walk.blocks = os.fstat(top).st_blocks
        walk.below(top, _STARTS)
    finally:
        os.close(top)
    return Usage(size=walk.blocks * _BLOCK, inodes=walk.inodes)


class _Walk:
    """Sums up. Paths are relative to an open folder, so that the root's own do not count."""

    def __init__(self) -> None:
        self.blocks = 0
        self.inodes = 1
        self._linked: set[tuple[int, int]] = set()

    def below(self, top: int, starts: int) -> None:
        """Adds all that is below the open folder ``top``."""
        folders = ["."]
        while folders:
            folder = folders.pop()
            try:
                fd = os.open(folder, _FOLDER, dir_fd=top)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if len(os.fsencode(folder)) < _LONG:
                    folders += [f"{folder}/{name}" for name in self._folder(fd)]
                elif starts:
                    self.below(fd, starts - 1)
                else:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            finally:
                os.close(fd)

    def _folder(self, fd: int) -> list[str]:
        """Adds what is in one folder, and answers the names of folders in it."""
        folders = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif found.st_nlink > 1:
                    identity = (found.st_dev, found.st_ino)
                    if identity in self._linked:
                        continue
                    self._linked.add(identity)
                self.blocks += found.st_blocks
                self.inodes += 1
        return folders
