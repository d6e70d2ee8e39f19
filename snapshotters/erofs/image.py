"""Erofs images: made from directories by mkfs.erofs, looked into, and guarded against changes.

The layout of superblock and inodes is that of the kernel's ``fs/erofs/erofs_fs.h``.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from supervisord.aio import command
from supervisord.contracts.errors import DataLoss, NotFound, ResourceExhausted, Unknown
from supervisord.linux import syscalls

MKFS = "mkfs.erofs"

_SECONDS = 3600.0
_SUPERBLOCK_AT = 1024
_MAGIC = 0xE0F5E1E2
_SLOT = 32
_LONG = 0x1

_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_IMMUTABLE = 0x10
_VERITY = 0x00100000
_ENABLE_VERITY = 0x40806685
_SHA256 = 1
_VERITY_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """Of the root directory in an image."""

    mode: int
    uid: int
    gid: int


async def build(tree: str, image: str, options: Sequence[str] = ()) -> None:
    """Makes ``image`` of the directory ``tree``, and has it on the disk.

    Raises NotFound (no mkfs.erofs), ResourceExhausted, DeadlineExceeded, Unknown."""
    result = await command.run([MKFS, "--quiet", *options, image, tree], seconds=_SECONDS)
    if result.status:
        if os.strerror(errno.ENOSPC) in result.stderr.decode(errors="replace"):
            raise ResourceExhausted(f"{image}: no space left on the disk")
        raise Unknown(f"{MKFS}: {tree}: {result.last_words}")
    await asyncio.to_thread(flush, image)


def flush(path: str) -> None:
    """Has a file and its name on the disk. Raises OSError."""
    for each, flags in ((path, 0), (str(Path(path).parent), os.O_DIRECTORY)):
        fd = os.open(each, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def root_of(path: str) -> Owner:
    """Mode and owner of the root directory. Raises DataLoss for what is no erofs image, NotFound
    for no file, OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such layer image") from None
    try:
        return _root(fd)
    except struct.error:
        raise DataLoss(f"{path}: is no erofs image") from None
    finally:
        os.close(fd)


def _root(fd: int) -> Owner:
    superblock = os.pread(fd, 128, _SUPERBLOCK_AT)
    (magic,) = struct.unpack_from("<I", superblock, 0)
    if magic != _MAGIC:
        raise struct.error
    bits, _, root = struct.unpack_from("<BBH", superblock, 12)
    (first,) = struct.unpack_from("<I", superblock, 40)
    if not 9 <= bits <= 16:
        raise struct.error
    inode = os.pread(fd, 64, (first << bits) + root * _SLOT)
    form, _, mode = struct.unpack_from("<HHH", inode, 0)
    if form & _LONG:
        uid, gid = struct.unpack_from("<II", inode, 24)
    else:
        uid, gid = struct.unpack_from("<HH", inode, 24)
    return Owner(mode & 0o7777, uid, gid)


# Guards -------------------------------------------------------------------------------------


def set_immutable(path: str, wanted: bool) -> None:
    """Whether nobody, root neither, may write, rename or remove the file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        flags = _flags(fd)
        changed = flags | _IMMUTABLE if wanted else flags & ~_IMMUTABLE
        if changed != flags:
            syscalls.ioctl(fd, _SETFLAGS, bytearray(struct.pack("=Q", changed)))
    finally:
        os.close(fd)


def supports_verity(folder: str) -> bool:
    """Whether files in ``folder`` can have fs-verity: by trying. Raises OSError."""
    probe = Path(folder) / ".verity"
    probe.write_bytes(b"")
    try:
        enable_verity(str(probe))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        with suppress(FileNotFoundError):
            probe.unlink()
    return True


def enable_verity(path: str) -> None:
    """Has the kernel check every block that is read of the file from now on. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        request = bytearray(struct.pack("=III116x", 1, _SHA256, _VERITY_BLOCK))
        syscalls.ioctl(fd, _ENABLE_VERITY, request)
    except FileExistsError:
        return  # it has been before
    finally:
        os.close(fd)


def has_verity(path: str) -> bool:
    """Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(_flags(fd) & _VERITY)
    finally:
        os.close(fd)


def _flags(fd: int) -> int:
    buffer = bytearray(8)
    fcntl.ioctl(fd, _GETFLAGS, buffer)
    return int.from_bytes(buffer[:4], "little")
