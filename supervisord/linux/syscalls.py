"""The C library, by ctypes: each call checks its result and raises OSError.

Used by the other files of this room only. The GIL is released while a call runs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

SYS_OPENAT2 = 437
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_MOVE_MOUNT = 429
SYS_MOUNT_SETATTR = 442
SYS_OPEN_TREE = 428
SYS_CLONE3 = 435
SYS_QUOTACTL_FD = 443
"""Numbers of calls that the C library has no function for; since Linux 5.0 they are the same on
every architecture."""


def _declare(name: str, *arguments: Any) -> Callable[..., int]:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int

    def call(*values: Any) -> int:
        result: int = function(*values)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    return call


mount = _declare(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
)
umount2 = _declare("umount2", ctypes.c_char_p, ctypes.c_int)
prctl = _declare(
    "prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong
)
madvise = _declare("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
unshare = _declare("unshare", ctypes.c_int)
syncfs = _declare("syncfs", ctypes.c_int)
statx = _declare(
    "statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
)
eventfd = _declare("eventfd", ctypes.c_uint, ctypes.c_int)
setns = _declare("setns", ctypes.c_int, ctypes.c_int)
setrlimit = _declare("setrlimit", ctypes.c_int, ctypes.c_void_p)
capset = _declare("capset", ctypes.c_char_p, ctypes.c_char_p)

_ioctl = _declare("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def ioctl(fd: int, request: int, arguments: bytearray) -> int:
    """A control call on a structure, which it may change. ``fcntl.ioctl`` keeps all other threads
    waiting where that has more than 1 KiB."""
    return _ioctl(fd, request, (ctypes.c_char * len(arguments)).from_buffer(arguments))


_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int | bytes | bytearray | None) -> int:
    """A system call by number. Integers are passed as longs, bytes as pointers to them, and so are
    byte arrays, which the kernel may fill."""
    values = [_argument(value) for value in arguments]
    result: int = _syscall(ctypes.c_long(number), *values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _argument(value: int | bytes | bytearray | None) -> Any:
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, bytearray):
        return (ctypes.c_char * len(value)).from_buffer(value)
    return ctypes.c_char_p(value)
