"""Writes the entries of a layer into the root directory of the (chrooted) process.

Follows containerd's rules: a directory meets a directory and takes the new attributes, anything
else that is in the way is replaced; owner, xattrs, mode and times are set in that order, the times
of directories at the very end; ``trusted.*`` xattrs are never taken from a layer.
"""

# Plain os calls on bytes, because this runs for every entry.
# ruff: noqa: PTH101, PTH102, PTH116, PTH211
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from supervisord.contracts.errors import DataLoss, InvalidArgument, ResourceExhausted

from . import whiteout
from .header import Entry
from .paths import Folders, Times, clean, join
from .tar import TarReader
from .whiteout import Whiteouts

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT = b"/"
_SET_ID = stat.S_ISUID | stat.S_ISGID
_LAST_TIME = (1 << 63) - 1
_LAST_ID = (1 << 32) - 2
_DEVICES = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK}
_NOT_FROM_LAYERS = (b"trusted.", b"user.overlay.")


class Extractor:
    """``brought`` is shared with ``whiteouts``: the paths that this layer has brought so far, with
    the folders that they are in. ``limit`` is the most entries to accept, 0 for any number: each
    costs memory until the end. Without ``devices`` they are left out, as containerd does in a user
    namespace, where nobody can make them."""

    def __init__(
        self,
        reader: TarReader,
        folders: Folders,
        whiteouts: Whiteouts,
        brought: set[bytes],
        limit: int = 0,
        *,
        devices: bool = True,
    ) -> None:
        self._reader = reader
        self._devices = devices
        self._limit = limit
        self._folders = folders
        self._whiteouts = whiteouts
        self._brought = brought
        brought.add(_ROOT)
        self._plain: set[bytes] = set()  # folders whose set-group bit or ACL changes no new file
        self._times: dict[bytes, Times] = {}

    def run(self) -> int:
        """Extracts everything; answers the number of entries. Raises InvalidArgument, DataLoss,
        ResourceExhausted, OSError."""
        if not os.listxattr(_ROOT) and not os.stat(_ROOT).st_mode & _SET_ID and os.geteuid() == 0:
            self._plain.add(_ROOT)
        count = 0
        for entry in self._reader:
            count += 1
            if count > self._limit > 0:
                raise ResourceExhausted(f"layer: it has more than {self._limit} entries")
            name = clean(entry.name)
            if name:
                self._entry(name, entry)
        self._set_folder_times()
        return count

    def _entry(self, name: bytes, entry: Entry) -> None:
        _check(entry)
        folder, base = self._folders.place(name)
        if base.startswith(whiteout.PREFIX):
            self._whiteout(folder, base, entry)
            return
        path = join(folder, base)
        match entry.type:
            case b"0" | b"\0" | b"7" | b"S":
                self._file(path, entry, plain=folder in self._plain)
            case b"5":
                self._folder(name, path, entry, plain=folder in self._plain)
            case b"2":
                self._make(path, lambda: os.symlink(entry.linkname, path))
                self._attributes(path, entry, owned=folder in self._plain and _of_root(entry))
            case b"1":
                self._link(path, entry)
            case b"3" | b"4":
                if not self._devices:
                    return
                mode = _DEVICES[entry.type] | entry.mode
                self._make(path, lambda: os.mknod(path, mode, os.makedev(*entry.device)))
                self._attributes(path, entry)
            case b"6":
                self._make(path, lambda: os.mknod(path, stat.S_IFIFO | entry.mode))
                self._attributes(path, entry)
            case _:
                raise InvalidArgument(f"layer: {entry.name!r} has the unknown type {entry.type!r}")
        self._brought.add(path)
        while folder not in self._brought:
            self._brought.add(folder)
            folder = folder.rpartition(b"/")[0] or _ROOT

    def _whiteout(self, folder: bytes, base: bytes, entry: Entry) -> None:
        if base == whiteout.OPAQUE:
            self._whiteouts.opaque(folder)
            self._folders.forget()
        elif not base.startswith(whiteout.META):  # other marks are of aufs alone
            self._whiteouts.delete(folder, whiteout.target(base), (entry.uid, entry.gid))
            self._folders.forget()

    # Kinds -----------------------------------------------------------------------------------

    def _file(self, path: bytes, entry: Entry, plain: bool) -> None:
        # In a plain folder a new file has owner 0:0 and just the mode that it is opened with.
        as_made = plain and _of_root(entry) and not entry.mode & _SET_ID
        mode = entry.mode if as_made else 0o600
        try:
            fd = os.open(path, _NEW_FILE, mode)
        except FileExistsError:
            self._clear(path)
            fd = os.open(path, _NEW_FILE, mode)
        try:
            if entry.sparse is not None:
                self._sparse_data(fd, entry)
            elif entry.size:
                for piece in self._reader.data():
                    _write(fd, piece)
            if not as_made:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            if not as_made or entry.xattrs:
                os.fchmod(fd, entry.mode)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _sparse_data(self, fd: int, entry: Entry) -> None:
        os.ftruncate(fd, entry.real_size)
        parts = iter(entry.sparse or ())
        offset = left = 0
        for piece in self._reader.data():
            while piece:
                while left == 0:
                    offset, left = next(parts)
                size = min(left, len(piece))
                os.lseek(fd, offset, os.SEEK_SET)
                _write(fd, piece[:size])
                piece = piece[size:]
                offset += size
                left -= size

    def _folder(self, name: bytes, path: bytes, entry: Entry, plain: bool) -> None:
        as_made = plain and _of_root(entry) and not entry.mode & _SET_ID and not entry.xattrs
        mode = entry.mode if as_made else 0o700
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            as_made = False
            found = os.lstat(path)
            plain = path in self._plain
            if not stat.S_ISDIR(found.st_mode):
                self._clear(path)
                os.mkdir(path, 0o700)
                if whiteout.is_mark(found):
                    self._whiteouts.opaque(path)
        if plain and not entry.mode & _SET_ID and not entry.xattrs:
            self._plain.add(path)
        else:
            self._plain.discard(path)
        self._folders.made(name, path)
        if not as_made:
            self._attributes(path, entry)
        self._times[path] = _times(entry)
        self._folders.implied.pop(path, None)

    def _link(self, path: bytes, entry: Entry) -> None:
        target = self._folders.find(clean(entry.linkname))
        self._folders.bring(target)
        try:
            if whiteout.is_mark(os.lstat(target)):
                raise FileNotFoundError
            self._make(path, lambda: os.link(target, path, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            why = "no file" if isinstance(error, PermissionError) else "not there"
            raise InvalidArgument(
                f"layer: {entry.name!r} is a hard link to {entry.linkname!r}, which is {why}"
            ) from None
        self._attributes(path, entry)

    def _make(self, path: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._clear(path)
            make()

    def _clear(self, path: bytes) -> None:
        """Removes what is in the way."""
        found = os.lstat(path)
        whiteout.remove(path, found)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode):
            self._folders.forget()
            self._plain = {_ROOT} & self._plain
        self._times.pop(path, None)

    # Attributes ------------------------------------------------------------------------------

    def _attributes(self, path: bytes, entry: Entry, owned: bool = False) -> None:
        if not owned:
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if entry.xattrs:
            _set_xattrs(path, entry)
        if entry.type != b"2" and not (entry.type == b"1" and stat.S_ISLNK(os.lstat(path).st_mode)):
            os.chmod(path, entry.mode)
        if entry.type != b"5":
            os.utime(path, ns=_times(entry), follow_symlinks=False)

    def _set_folder_times(self) -> None:
        implied = {path: times for path, times in self._folders.implied.items() if times}
        for path, times in {**implied, **self._times}.items():
            try:
                os.utime(path, ns=times, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a later entry replaced it or what it was in


def _of_root(entry: Entry) -> bool:
    return not entry.uid and not entry.gid


def _check(entry: Entry) -> None:
    if not (0 <= entry.uid <= _LAST_ID and 0 <= entry.gid <= _LAST_ID):
        raise DataLoss(f"layer: {entry.name!r} has an owner out of range")
    if not all(0 <= number < 1 << 32 for number in entry.device):
        raise DataLoss(f"layer: {entry.name!r} has a device number out of range")
    if any(not name or b"\0" in name for name in entry.xattrs):
        raise DataLoss(f"layer: {entry.name!r} has an extended attribute without a proper name")
    if b"\0" in entry.linkname or (entry.type == b"2" and not entry.linkname):
        raise DataLoss(f"layer: {entry.name!r} has a malformed link target")


def _times(entry: Entry) -> Times:
    access = max(entry.atime_ns, entry.mtime_ns)
    return _bound(access), _bound(entry.mtime_ns)


def _bound(time_ns: int) -> int:
    """A time that the kernel can keep; others become the epoch, as in containerd."""
    return time_ns if 0 <= time_ns <= _LAST_TIME else 0


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _set_xattrs(target: int | bytes, entry: Entry) -> None:
    on_path = not isinstance(target, int)
    for name, value in entry.xattrs.items():
        if name.startswith(_NOT_FROM_LAYERS):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=not on_path)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                continue
            if error.errno == errno.EPERM and name.startswith(b"user.") and entry.type not in b"05":
                continue  # only files and directories can have them
            raise
