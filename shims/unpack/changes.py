"""What differs between two directory trees, in the order in which a layer tells it.

The rules are those of continuity's ``fs`` package, as containerd's walking differ uses them: the
same owner, mode, device, capabilities, size and time mean the same file, and where both times were
cut to whole seconds the contents decide. Everything is reached through descriptors of the folders
that it is in, so that a tree which changes meanwhile leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CAPABILITY = "security.capability"
_OVERLAY_MARKS = (".overlay.opaque", ".overlay.redirect")
_CHUNK = 1 << 20


class Kind(Enum):
    """``LINKED`` is an unchanged file with several names, which a changed one may share."""

    ADD = 1
    MODIFY = 2
    DELETE = 3
    LINKED = 4


@dataclass(frozen=True, slots=True)
class Change:
    """``path`` is relative; ``found`` and the open ``folder`` with ``name`` are of the upper tree
    (``found`` is None for a deletion). They hold until the next change is asked for."""

    kind: Kind
    path: bytes
    folder: int
    name: bytes
    found: os.stat_result | None = None


@dataclass(slots=True)
class _Level:
    """One folder on the way down: descriptors (-1 for none) and the names still to look at."""

    path: bytes
    lower: int
    upper: int
    candidates: int
    names: list[bytes]

    def close(self) -> None:
        for fd in (self.lower, self.upper, self.candidates):
            if fd >= 0:
                os.close(fd)


class Walk:
    """Iterate over the changes from ``lower`` (-1 for an empty tree) to ``upper``.

    ``candidates``, if given, is the directory in which an overlay keeps what distinguishes upper
    from lower: then only what has a name there is looked at."""

    def __init__(self, lower: int, upper: int, candidates: int = -1) -> None:
        self._levels = [_level(b"", _dup(lower), _dup(upper), _dup(candidates))]

    def folder(self, path: bytes) -> os.stat_result:
        """The upper folder ``path``, which is one of those on the way to the current change."""
        for level in self._levels:
            if level.path == path:
                return os.fstat(level.upper)
        raise KeyError(path)

    def look(self, path: bytes) -> os.stat_result:
        """Any other folder of the upper tree."""
        fd = os.dup(self._levels[0].upper)
        try:
            for name in path.split(b"/"):
                below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            return os.fstat(fd)
        finally:
            os.close(fd)

    def __iter__(self) -> Iterator[Change]:
        """Raises OSError."""
        while self._levels:
            level = self._levels[-1]
            if not level.names:
                self._levels.pop().close()
                continue
            yield from self._at(level, level.names.pop())

    def close(self) -> None:
        """Closes what an iteration that did not come to its end has open."""
        while self._levels:
            self._levels.pop().close()

    def _at(self, level: _Level, name: bytes) -> Iterator[Change]:
        path = level.path + b"/" + name if level.path else name
        old = _lstat(level.lower, name)
        new = _lstat(level.upper, name)
        if new is None:
            if old is not None:
                yield Change(Kind.DELETE, path, level.upper, name)
            return
        if old is None:
            yield Change(Kind.ADD, path, level.upper, name, new)
        elif not _same(level, name, old, new):
            yield Change(Kind.MODIFY, path, level.upper, name, new)
        elif not stat.S_ISDIR(new.st_mode) and new.st_nlink > 1:
            yield Change(Kind.LINKED, path, level.upper, name, new)
        if stat.S_ISDIR(new.st_mode):
            below = old is not None and stat.S_ISDIR(old.st_mode)
            self._descend(level, path, name, below)

    def _descend(self, level: _Level, path: bytes, name: bytes, below: bool) -> None:
        lower = os.open(name, _FOLDER, dir_fd=level.lower) if below else -1
        upper = os.open(name, _FOLDER, dir_fd=level.upper)
        candidates = -1
        if level.candidates >= 0:
            candidates = os.open(name, _FOLDER, dir_fd=level.candidates)
            if not below or _replaces(candidates):
                os.close(candidates)
                candidates = -1
        self._levels.append(_level(path, lower, upper, candidates))


def _level(path: bytes, lower: int, upper: int, candidates: int) -> _Level:
    if candidates >= 0:
        names = set(_list(candidates))
    else:
        names = set(_list(upper))
        if lower >= 0:
            names.update(_list(lower))
    return _Level(path, lower, upper, candidates, sorted(names, reverse=True))


def _list(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _dup(fd: int) -> int:
    return os.open(".", _FOLDER, dir_fd=fd) if fd >= 0 else -1


def _lstat(folder: int, name: bytes) -> os.stat_result | None:
    if folder < 0:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _replaces(folder: int) -> bool:
    """Whether an overlay's folder does not merge with the one of the same name below."""
    return any(name.endswith(_OVERLAY_MARKS) for name in os.listxattr(folder))


# The same file? --------------------------------------------------------------------------------


def _same(level: _Level, name: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True
    if _identity(old) != _identity(new):
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if old.st_size != new.st_size or old.st_mtime_ns != new.st_mtime_ns:
        return False
    if capability(level.lower, name, old) != capability(level.upper, name, new):
        return False
    if new.st_mtime_ns % 1_000_000_000:
        return True
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(name, dir_fd=level.lower) == os.readlink(name, dir_fd=level.upper)
    if not stat.S_ISREG(new.st_mode) or not new.st_size:
        return True
    return _same_contents(level, name)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mode, found.st_uid, found.st_gid, found.st_rdev


def capability(folder: int, name: bytes, found: os.stat_result) -> bytes:
    """The file capabilities of a regular file, b"" for none."""
    if not stat.S_ISREG(found.st_mode):
        return b""
    path = b"/proc/self/fd/%d/%b" % (folder, name)
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return b""
        raise


def open_file(folder: int, name: bytes) -> int:
    """Opens a regular file of a tree for reading."""
    return os.open(name, _FILE, dir_fd=folder)


def _same_contents(level: _Level, name: bytes) -> bool:
    old = open_file(level.lower, name)
    try:
        new = open_file(level.upper, name)
        try:
            while True:
                piece = os.read(old, _CHUNK)
                if piece != os.read(new, _CHUNK):
                    return False
                if not piece:
                    return True
        finally:
            os.close(new)
    finally:
        os.close(old)
