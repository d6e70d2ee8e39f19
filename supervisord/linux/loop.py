"""Loop devices: a file as a block device, which goes away by itself with its last user.

Called by ``linux.mount`` for the option ``loop`` and by the mount manager. Structures and flags are
those of the kernel's ``linux/loop.h``; ``LOOP_CONFIGURE`` is there since Linux 5.8. Blocking.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from supervisord.contracts.errors import Unavailable

from . import syscalls

_CONTROL = "/dev/loop-control"
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_GET_STATUS = 0x4C05
_SET_STATUS = 0x4C04

_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16

_CONFIG = 304
_STATUS = 232
_INFO_AT = 8
_FLAGS_AT = 52
_NAME_AT = 56
_NAME_ROOM = 63
_TRIES = 64


@contextmanager
def attached(path: str, *, read_only: bool, direct: bool = False) -> Iterator[str]:
    """The device of a file, for the block; what mounts or opens it meanwhile keeps it longer.

    Raises OSError for the file, Unavailable where every device that is free is taken at once."""
    fd, name = attach(path, read_only=read_only, direct=direct)
    try:
        yield name
    finally:
        os.close(fd)


def attach(path: str, *, read_only: bool, direct: bool = False, mark: str = "") -> tuple[int, str]:
    """An open device over the file, and its name. It is cleared by the last close. ``mark``
    (else the path) is what ``mark_of`` answers, as far as it fits. Raises as ``attached``."""
    access = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(path, access | os.O_CLOEXEC)
    try:
        flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct else 0)
        config = bytearray(_CONFIG)
        struct.pack_into("=I", config, 0, backing)
        struct.pack_into("=I", config, _INFO_AT + _FLAGS_AT, flags)
        name = os.fsencode(mark or path)[:_NAME_ROOM]
        config[_INFO_AT + _NAME_AT : _INFO_AT + _NAME_AT + len(name)] = name
        return _configured(config, access)
    finally:
        os.close(backing)


def mark_of(fd: int) -> str:
    """What an open device was marked with. Raises OSError where it is over nothing."""
    status = bytearray(_STATUS)
    syscalls.ioctl(fd, _GET_STATUS, status)
    name = bytes(status[_NAME_AT : _NAME_AT + _NAME_ROOM])
    return os.fsdecode(name.partition(b"\0")[0])


def keep(fd: int, wanted: bool) -> None:
    """Whether an attached device stays when nobody has it open. Raises OSError."""
    status = bytearray(_STATUS)
    syscalls.ioctl(fd, _GET_STATUS, status)
    (flags,) = struct.unpack_from("=I", status, _FLAGS_AT)
    flags = flags & ~_AUTOCLEAR if wanted else flags | _AUTOCLEAR
    struct.pack_into("=I", status, _FLAGS_AT, flags)
    syscalls.ioctl(fd, _SET_STATUS, status)


def _configured(config: bytearray, access: int) -> tuple[int, str]:
    """Others look for a free device at the same time: the next one, then."""
    for _ in range(_TRIES):
        name = f"/dev/loop{_free()}"
        fd = os.open(name, access | os.O_CLOEXEC)
        try:
            syscalls.ioctl(fd, _CONFIGURE, bytearray(config))
            return fd, name
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise
        except BaseException:
            os.close(fd)
            raise
    raise Unavailable("loop: others take each free device")


def _free() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)
