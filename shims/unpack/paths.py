"""Where an entry of a layer goes: names are cleaned, their folders resolved and made.

Runs inside the chroot, so that ``/`` is the layer's target and nothing outside has a name. On top
of that every folder on the way is resolved here, component by component, once, and remembered:
links in the layer are followed inside the root as containerd follows them.
"""

# Plain os calls on bytes, because this runs for every entry.
# ruff: noqa: PTH102, PTH108, PTH115
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

from supervisord.contracts.errors import InvalidArgument
from supervisord.linux.lowers import take_after

from .bring import bring_up, is_hidden

IMPLIED = ".overlay.supervisord.implied"
"""Behind ``trusted`` or ``user``: the xattr on folders that no entry brought."""

_MAX_LINKS = 255
_NAME_MAX = 255
_PATH_MAX = 4096
_IMPLIED_MODE = 0o755

Times = tuple[int, int]
"""Access and modification time in nanoseconds."""


def clean(name: bytes) -> bytes:
    """A relative path without ``.``, ``..`` and double slashes; b"" is the root itself.

    ``..`` stops at the root. Raises InvalidArgument for a zero byte or an overlong name."""
    if b"\0" in name:
        raise InvalidArgument(f"layer: the name {name!r} has a zero byte")
    if len(name) > _NAME_MAX:
        longest = max(map(len, name.split(b"/")))
        if longest > _NAME_MAX or len(name) >= _PATH_MAX:
            raise InvalidArgument(f"layer: the name {name[:64]!r}... is too long")
    if name[:1] not in b"/." and b"//" not in name and b"/." not in name:
        return name.rstrip(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


class Folders:
    """The folders of the target. ``lowers`` are open directories of the layers below (nearest
    first), from which a folder that the archive does not bring takes its attributes; ``reborn`` is
    told of a folder that takes the place of its own whiteout."""

    def __init__(
        self, lowers: Sequence[int] = (), reborn: Callable[[bytes], None] | None = None
    ) -> None:
        self._lowers = lowers
        self._reborn = reborn
        self._known: dict[bytes, bytes] = {b"": b"/"}
        self.implied: dict[bytes, Times | None] = {}
        """Folders made without an entry, with the times they take from a lower layer."""

    def place(self, name: bytes) -> tuple[bytes, bytes]:
        """The absolute folder and the last component for a clean name; the folder is there.

        Raises InvalidArgument when something on the way is no folder, OSError."""
        folder, _, base = name.rpartition(b"/")
        known = self._known.get(folder)
        if known is None:
            known = self.resolve(folder)
            self._ensure(known)
            self._known[folder] = known
        return known, base

    def made(self, name: bytes, path: bytes) -> None:
        """Remembers that the clean name is the folder ``path``, which was just made."""
        self._known[name] = path

    def find(self, name: bytes) -> bytes:
        """The absolute path for a clean name, with its folder resolved but nothing made."""
        folder, _, base = name.rpartition(b"/")
        return join(self._known.get(folder) or self.resolve(folder), base)

    def bring(self, path: bytes) -> None:
        """Sees to it that a file of the layers below is there in this one, too."""
        if not self._lowers or os.path.lexists(path) or is_hidden(path):
            return
        folder = path.rpartition(b"/")[0] or b"/"
        self._ensure(folder)
        bring_up(path, self._lowers)

    def forget(self) -> None:
        """A folder or a link was replaced: what was resolved may lead elsewhere now."""
        self._known = {b"": b"/"}

    def resolve(self, path: bytes) -> bytes:
        """The absolute path with all links followed inside the root; the end may not exist.

        Raises InvalidArgument for a cycle of links."""
        todo = path.split(b"/")[::-1]
        done = b""
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                done = done.rpartition(b"/")[0]
                continue
            here = done + b"/" + part
            text = _link_text(here)
            if text is None:
                done = here
                continue
            links += 1
            if links > _MAX_LINKS:
                raise InvalidArgument(f"layer: too many links on the way to {path!r}")
            if text.startswith(b"/"):
                done = b""
            todo.extend(text.split(b"/")[::-1])
        return done or b"/"

    def _ensure(self, path: bytes) -> None:
        missing = []
        while not self._is_there(path):
            missing.append(path)
            path = path.rpartition(b"/")[0] or b"/"
        for each in reversed(missing):
            os.mkdir(each, _IMPLIED_MODE)
            self.implied[each] = self._inherit(each)

    def _is_there(self, path: bytes) -> bool:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise _not_a_folder(path) from None
        if self._reborn is not None and stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            os.unlink(path)
            os.mkdir(path, _IMPLIED_MODE)
            self.implied[path] = None
            self._reborn(path)
        elif not stat.S_ISDIR(found.st_mode):
            raise _not_a_folder(path)
        return True

    def _inherit(self, path: bytes) -> Times | None:
        """Attributes from the nearest lower layer that has the folder; None where none has."""
        if not self._lowers:
            return None
        made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return take_after(made, path, self._lowers)
        finally:
            os.close(made)

    def mark_implied(self, namespace: str) -> None:
        """Marks the implied folders, and the root if there are any, for whoever puts layers below
        this one later (the overlay snapshotter does)."""
        for path in (*self.implied, b"/") if self.implied else ():
            os.setxattr(path, f"{namespace}{IMPLIED}", b"y")


def join(folder: bytes, base: bytes) -> bytes:
    return folder + base if folder == b"/" else folder + b"/" + base


def _link_text(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def _not_a_folder(path: bytes) -> InvalidArgument:
    return InvalidArgument(f"layer: {os.fsdecode(path)!r} is not a directory")
