"""How much disk a directory tree takes; called by snapshotters, always in a thread."""

from __future__ import annotations

import os

from supervisord.contracts.snapshots import Usage

_BLOCK = 512


def disk_usage(root: str) -> Usage:
    """Allocated bytes and inodes of ``root`` and all below it, each inode once.

    What vanishes during the walk is left out. Raises OSError if ``root`` cannot be read."""
    top = os.lstat(root)
    size = top.st_blocks * _BLOCK
    inodes = 1
    linked: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            if folder == root:
                raise
            continue
        with entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif found.st_nlink > 1:
                    identity = (found.st_dev, found.st_ino)
                    if identity in linked:
                        continue
                    linked.add(identity)
                size += found.st_blocks * _BLOCK
                inodes += 1
    return Usage(size=size, inodes=inodes)
