"""Turns changes into the tar of a layer: whiteouts, folders on the way, hard links, capabilities.

Follows containerd's change writer: every changed path comes after the folders that it is in,
deletions are empty ``.wh.`` files of 1970, times are cut to seconds (and to SOURCE_DATE_EPOCH), the
first name of a file with several carries the contents, sockets are left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace

from supervisord.contracts.errors import FailedPrecondition

from .changes import Change, Kind, Walk, capability, open_file
from .tarwriter import Header, TarWriter, of
from .whiteout import PREFIX

_CAPABILITY = b"SCHILY.xattr.security.capability"
_CHUNK = 1 << 19


class LayerWriter:
    """``write`` takes the bytes of the archive; ``latest`` is SOURCE_DATE_EPOCH in seconds."""

    def __init__(
        self, walk: Walk, write: Callable[[bytes | memoryview], None], latest: int | None = None
    ) -> None:
        self._walk = walk
        self._write = write
        self._tar = TarWriter(write)
        self._latest = latest
        self._folders: set[bytes] = {b""}
        self._first: dict[tuple[int, int], bytes] = {}
        self._linked: dict[tuple[int, int], list[bytes]] = {}

    def run(self) -> None:
        """Writes the whole archive. Raises FailedPrecondition (a file changed), OSError."""
        for change in self._walk:
            if change.kind == Kind.DELETE:
                folder, slash, name = change.path.rpartition(b"/")
                self._parents(change.path)
                self._tar.header(Header(folder + slash + PREFIX + name))
            elif change.found is not None and not stat.S_ISSOCK(change.found.st_mode):
                self._changed(change, change.found)
        self._tar.end()

    def _changed(self, change: Change, found: os.stat_result) -> None:
        folder = stat.S_ISDIR(found.st_mode)
        link = b""
        if stat.S_ISLNK(found.st_mode):
            link = os.readlink(change.name, dir_fd=change.folder)
        header = of(change.path + b"/" * folder, found, link, self._latest)
        others: list[bytes] = []
        if found.st_nlink > 1 and not folder:
            inode = (found.st_dev, found.st_ino)
            first = self._first.get(inode)
            if first is not None:
                header = replace(header, type=b"1", linkname=first, size=0)
            elif change.kind == Kind.LINKED:
                self._linked.setdefault(inode, []).append(change.path)
                return
            else:
                self._first[inode] = change.path
                others = self._linked.pop(inode, [])
        held = capability(change.folder, change.name, found)
        if held:
            header.records = {_CAPABILITY: held}
        self._parents(change.path)
        if folder:
            self._folders.add(change.path)
        self._tar.header(header)
        if header.size:
            self._contents(change, header.size)
        for other in others:
            self._parents(other)
            linked = replace(header, name=other, type=b"1", linkname=change.path, size=0)
            self._tar.header(linked)

    def _parents(self, path: bytes) -> None:
        """Writes the folders on the way to ``path`` that are not in the archive yet."""
        missing = []
        while (path := path.rpartition(b"/")[0]) not in self._folders:
            missing.append(path)
        for parent in reversed(missing):
            self._folders.add(parent)
            self._tar.header(of(parent + b"/", self._folder(parent), latest=self._latest))

    def _folder(self, path: bytes) -> os.stat_result:
        try:
            return self._walk.folder(path)
        except KeyError:  # of another name of a linked file
            return self._walk.look(path)

    def _contents(self, change: Change, size: int) -> None:
        fd = open_file(change.folder, change.name)
        try:
            left = size
            while left and (piece := os.read(fd, min(left, _CHUNK))):
                self._write(piece)
                left -= len(piece)
        finally:
            os.close(fd)
        if left:
            name = os.fsdecode(change.path)
            raise FailedPrecondition(f"diff: {name!r} became shorter while it was read")
        self._tar.pad(size)
