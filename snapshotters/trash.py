"""Removes directory trees of snapshots that are no more; called in a thread.

What a container left is hostile: folders too deep for any path, and names that its processes still
change into links while they go. So every folder is reached from the one it is in, links are never
followed, and what lies too deep is first moved beside the tree; a crash leaves it there for the
next ``cleanup``. Failures are reported, not raised: the row is gone already.
"""

# Plain os calls, because this runs for every file.
from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_DEPTH = 64  # folders that are open at a time
_BATCH = 4096  # entries of a folder that are looked at before they go
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> bool:
    """Whether nothing is left at ``path``."""
    try:
        top = os.open(path.parent, _FOLDER)
    except FileNotFoundError:
        return True
    try:
        _Removal(top, path.name).run()
    except OSError as error:
        log.warning("could not remove the snapshot directory %s: %s", path, error)
        return False
    finally:
        os.close(top)
    return True


class _Removal:
    """``top`` is the open folder that ``name`` is in."""

    def __init__(self, top: int, name: str) -> None:
        self._top = top
        self._name = name
        self._moved = 0
        self._waiting = [name]

    def run(self) -> None:
        """Raises OSError for what cannot be removed, after the rest."""
        failure: OSError | None = None
        while self._waiting:
            try:
                self._entry(self._top, self._waiting.pop(), _DEPTH)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _entry(self, folder: int, name: str, depth: int) -> None:
        try:
            fd = os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            os.unlink(name, dir_fd=folder)
            return
        try:
            self._clear(fd, depth - 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=folder)

    def _clear(self, fd: int, depth: int) -> None:
        """Empties an open folder, as often as somebody still fills it."""
        while entries := _some(fd):
            for name, is_folder in entries:
                if not is_folder:
                    _unlink(name, fd)
                elif depth:
                    self._entry(fd, name, depth)
                else:
                    self._move(fd, name)

    def _move(self, fd: int, name: str) -> None:
        while True:
            self._moved += 1
            place = f"{self._name}.{self._moved}"
            try:
                os.mkdir(place, 0o700, dir_fd=self._top)
            except FileExistsError:
                continue
            os.rename(name, place, src_dir_fd=fd, dst_dir_fd=self._top)
            self._waiting.append(place)
            return


def _some(fd: int) -> list[tuple[str, bool]]:
    found = []
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as entries:
        for entry in entries:
            found.append((entry.name, entry.is_dir(follow_symlinks=False)))
            if len(found) == _BATCH:
                break
    return found


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except IsADirectoryError:  # it was something else a moment ago
        return
