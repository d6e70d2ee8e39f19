"""Btrfs by its control calls: subvolumes made, copied, destroyed and looked into.

Numbers and layouts are those of the kernel's ``linux/btrfs.h`` and ``linux/btrfs_tree.h``. Used by
the btrfs snapshotter, in threads: a snapshot is there when its transaction is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from . import syscalls

_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_CREATE_V2 = 0x50009418
_SNAP_DESTROY = 0x5000940F
_INO_LOOKUP = 0xD0009412
_GET_SUBVOL_INFO = 0x81F8943C
_SYNC = 0x9408
_TREE_SEARCH_V2 = 0xC0709411

_READ_ONLY = 1 << 1
_ROOT_INODE = 256
_OTRANSID_AT = 352

_INODE_ITEM = 1
_EXTENT_DATA = 108
_INLINE = 0
_INLINE_DATA_AT = 21

_DESTROY = struct.Struct("=q4088s")
_HEADER = struct.Struct("=QQQII")
_KEY = struct.Struct("=7Q4I4Q")
_ROOM = 1 << 16
_MOST = (1 << 64) - 1

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def device_of(path: str) -> str | None:
    """The device that the btrfs below ``path`` was mounted from; None where it is no btrfs.

    Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kind, source = _mount_of(fd)
    finally:
        os.close(fd)
    return source if kind == "btrfs" else None


def create(path: str) -> None:
    """A new empty subvolume. Raises OSError."""
    _in_folder(path, _SUBVOL_CREATE_V2, lambda name: _made_of(0, 0, name))


def snapshot(source: str, path: str, *, read_only: bool) -> None:
    """A subvolume ``path`` with the contents that ``source`` has now. Raises OSError."""
    flags = _READ_ONLY if read_only else 0
    fd = os.open(source, _FOLDER)
    try:
        _in_folder(path, _SNAP_CREATE_V2, lambda name: _made_of(fd, flags, name))
    finally:
        os.close(fd)


def destroy(path: str) -> None:
    """Takes a subvolume away, with those that were made inside it; one that is not there is gone
    already. Raises OSError."""
    try:
        _destroy(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        for inner in _inside(path):
            _destroy(inner)
        _destroy(path)


def is_subvolume(path: str) -> bool:
    """Whether there is a subvolume at ``path``, itself a folder on btrfs."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_ino == _ROOT_INODE


def subvolume_id(path: str) -> int:
    """What the mount option ``subvolid`` takes. Raises OSError."""
    fd = os.open(path, _FOLDER)
    try:
        buffer = bytearray(4096)
        struct.pack_into("=QQ", buffer, 0, 0, _ROOT_INODE)
        syscalls.ioctl(fd, _INO_LOOKUP, buffer)
        return int.from_bytes(buffer[:8], "little")
    finally:
        os.close(fd)


def made_at(path: str) -> int:
    """The transaction in which a subvolume was made: what it shares is not younger. Raises
    OSError."""
    fd = os.open(path, _FOLDER)
    try:
        buffer = bytearray(504)
        syscalls.ioctl(fd, _GET_SUBVOL_INFO, buffer)
        return int.from_bytes(buffer[_OTRANSID_AT : _OTRANSID_AT + 8], "little")
    finally:
        os.close(fd)


def sync(path: str) -> None:
    """Has everything that was written to the file system of ``path`` in its trees. Raises
    OSError."""
    fd = os.open(path, _FOLDER)
    try:
        fcntl.ioctl(fd, _SYNC)
    finally:
        os.close(fd)


def usage_since(path: str, transaction: int) -> tuple[int, int]:
    """The bytes and inodes of a subvolume that came after ``transaction`` (0 for all): its own,
    where that is when it was made. Costs what is new, not what is there. Raises OSError."""
    size = inodes = 0
    fd = os.open(path, _FOLDER)
    try:
        for kind, item in _items(fd, transaction + 1):
            if int.from_bytes(item[:8], "little") <= transaction:
                continue
            if kind == _INODE_ITEM:
                inodes += 1
            elif kind == _EXTENT_DATA:
                size += _extent_size(item)
    finally:
        os.close(fd)
    return size, inodes


def _extent_size(item: bytes) -> int:
    if item[20] == _INLINE:
        return len(item) - _INLINE_DATA_AT
    at, _, _, length = struct.unpack_from("=4Q", item, 21)
    return int(length) if at else 0  # a hole has no place on the disk


def _items(fd: int, since: int) -> Iterator[tuple[int, bytes]]:
    """The inodes and extents in those leaves of the subvolume's tree that changed ``since``."""
    objectid, kind, offset = 0, _INODE_ITEM, 0
    while True:
        buffer = bytearray(_KEY.size + 8 + _ROOM)
        _KEY.pack_into(
            *(buffer, 0, 0, objectid, _MOST, offset, _MOST, since, _MOST),
            *(kind, _EXTENT_DATA, 0xFFFFFFFF, 0, 0, 0, 0, 0),
        )
        struct.pack_into("=Q", buffer, _KEY.size, _ROOM)
        syscalls.ioctl(fd, _TREE_SEARCH_V2, buffer)
        (count,) = struct.unpack_from("=I", buffer, 64)
        if not count:
            return
        at = _KEY.size + 8
        for _ in range(count):
            _, objectid, offset, kind, length = _HEADER.unpack_from(buffer, at)
            at += _HEADER.size
            if kind in (_INODE_ITEM, _EXTENT_DATA) and objectid >= _ROOT_INODE:
                yield kind, bytes(buffer[at : at + length])
            at += length
        objectid, kind, offset = _after(objectid, kind, offset)


def _after(objectid: int, kind: int, offset: int) -> tuple[int, int, int]:
    """The next key in the order of the tree, of those that are looked for."""
    if offset < _MOST:
        return objectid, kind, offset + 1
    if kind < _EXTENT_DATA:
        return objectid, kind + 1, 0
    return objectid + 1, _INODE_ITEM, 0


def _in_folder(path: str, call: int, arguments: Callable[[bytes], bytearray]) -> None:
    folder, name = os.path.split(path)
    fd = os.open(folder, _FOLDER)
    try:
        syscalls.ioctl(fd, call, arguments(os.fsencode(name)))
    finally:
        os.close(fd)


def _made_of(fd: int, flags: int, name: bytes) -> bytearray:
    return bytearray(struct.pack("=qQQ32x4040s", fd, 0, flags, name))


def _destroy(path: str) -> None:
    _in_folder(path, _SNAP_DESTROY, lambda name: bytearray(_DESTROY.pack(0, name)))


def _inside(path: str) -> list[str]:
    """The subvolumes that somebody made inside one, the innermost first."""
    found: list[str] = []
    for folder, names, _ in os.walk(path):
        found += [f"{folder}/{name}" for name in names if is_subvolume(f"{folder}/{name}")]
    return found[::-1]


def _mount_of(fd: int) -> tuple[str, str]:
    """Type and source of the mount that an open file is in."""
    fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text()
    mount_id = next(line.split()[1] for line in fdinfo.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split(" ", 1)[0] == mount_id:
            kind, source, *_ = line.partition(" - ")[2].split(" ")
            return kind, _unescape(source)
    raise FileNotFoundError(errno.ENOENT, "no mount holds it", f"mount id {mount_id}")


def _unescape(field: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace(f"\\{code}", character)
    return field
