"""A program that nobody can write to through the processes that run it.

``/proc/PID/exe`` of a process that enters a container leads to the host's own file: whoever gets
hold of it there could write to that file once it is not running any more (CVE-2019-5736). Run from
a read-only mount of its own, which belongs to no tree, it cannot be opened for writing.
"""

from __future__ import annotations

import os
import struct

from . import syscalls

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_RDONLY = 1


def read_only(path: str) -> int:
    """A descriptor of the program ``path`` on a read-only mount: execute ``/proc/PID/fd/FD``.

    Raises OSError (Linux before 5.12, no CAP_SYS_ADMIN)."""
    fd = syscalls.syscall(
        syscalls.SYS_OPEN_TREE,
        _AT_FDCWD,
        os.fsencode(path) + b"\0",
        _OPEN_TREE_CLONE | os.O_CLOEXEC,
    )
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        syscalls.syscall(
            syscalls.SYS_MOUNT_SETATTR, fd, b"\0", _AT_EMPTY_PATH, attributes, len(attributes)
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_confined(path: str, root: str = "") -> bool:
    """Whether AppArmor may treat this process, or the program ``path``, by the program's path,
    which a mount that belongs to no tree does not have. (SELinux goes by the file's label.)
    The kernel's files are looked for below ``root``."""
    try:
        if _text(f"{root}/sys/module/apparmor/parameters/enabled").strip() != "Y":
            return False
    except OSError:
        return False
    try:
        own = _text(f"{root}/proc/self/attr/current").rstrip("\0\n")
        profiles = _text(f"{root}/sys/kernel/security/apparmor/profiles")
    except OSError:
        return True
    return own != "unconfined" or path.rpartition("/")[2] in profiles


def _text(path: str) -> str:
    """All of a kernel's file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    finally:
        os.close(fd)


def is_read_only() -> bool:
    """Whether this process runs such a program."""
    return bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)
