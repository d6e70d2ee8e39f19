"""Snapshots counted by the file system: a project quota for each (``supervisord.linux.quota``).

Ids are taken from ``first`` on, those of removed snapshots again; the folders themselves remember
theirs. A committed snapshot keeps its id, because its files do. Called in threads.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading

from supervisord.contracts.snapshots import Usage
from supervisord.linux import quota

_BLOCK = 512
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Projects:
    """The project ids of one snapshotter."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._next = first
        self._free: list[int] = []
        self._of: dict[str, int] = {}
        self._guard = threading.Lock()

    def found(self, tree: str) -> None:
        """Notes a folder that was there before. Raises OSError."""
        fd = os.open(tree, _FOLDER)
        try:
            project = quota.project_of(fd)
        finally:
            os.close(fd)
        if project < self._first:
            return
        with self._guard:
            self._of[tree] = project
            self._free += range(self._next, project)
            self._next = max(self._next, project + 1)
            self._free = [each for each in self._free if each != project]
            heapq.heapify(self._free)

    def give(self, tree: str, *others: str) -> None:
        """Has new folders counted together. Raises OSError."""
        with self._guard:
            project = self._of.get(tree) or self._take()
            self._of[tree] = project
        for path in (tree, *others):
            fd = os.open(path, _FOLDER)
            try:
                quota.set_project(fd, project)
            finally:
                os.close(fd)

    def drop(self, tree: str) -> None:
        """The folder is gone, and with it all that had its id."""
        with self._guard:
            project = self._of.pop(tree, None)
            if project is not None:
                heapq.heappush(self._free, project)

    def usage(self, tree: str, *others: str) -> Usage | None:
        """What a folder takes, without the small ones that are counted with it; None where it is
        not counted. Raises OSError."""
        with self._guard:
            project = self._of.get(tree)
        if project is None:
            return None
        fd = os.open(tree, _FOLDER)
        try:
            size, inodes = quota.project_usage(fd, project)
        finally:
            os.close(fd)
        for other in others:
            beside = _alone(other)
            size, inodes = size - beside.size, inodes - beside.inodes
        return Usage(size=size, inodes=inodes)

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1


def _alone(folder: str) -> Usage:
    """Of what is in ``folder`` and nowhere else: the kernel keeps a whiteout in its work folder and
    links it into the snapshot."""
    blocks, inodes, folders = os.lstat(folder).st_blocks, 1, [folder]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder:
                    folders.append(entry.path)
                if is_folder or found.st_nlink == 1:
                    blocks += found.st_blocks
                    inodes += 1
    return Usage(size=blocks * _BLOCK, inodes=inodes)
