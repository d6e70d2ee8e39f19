"""Project quotas: the kernel's own count of what a directory tree takes (ext4 and xfs).

A folder with a project id and the flag to inherit it gives it to all that is made below. Where the
filesystem counts projects (``prjquota``), what one takes is known without a walk. Blocking.
"""

from __future__ import annotations

import fcntl
import os
import struct

from . import syscalls

_FSGETXATTR = 0x801C581F
_FSSETXATTR = 0x401C5820
_FSXATTR = struct.Struct("5I8x")  # flags, extent size, extents, project, copy-on-write size
_INHERIT = 0x200

_GETQUOTA = 0x800007 << 8
_PROJECTS = 2
_DQBLK = struct.Struct("8QI4x")  # .., space (third), .., inodes (sixth)


def project_of(fd: int) -> int:
    """The project of an open file or folder, 0 for none. Raises OSError."""
    return int(_attributes(fd)[3])


def set_project(fd: int, project: int) -> None:
    """Gives an open, empty folder a project, which all that is made in it inherits.

    Raises OSError."""
    flags, extent, extents, _, copy = _attributes(fd)
    wanted = _FSXATTR.pack(flags | _INHERIT, extent, extents, project, copy)
    fcntl.ioctl(fd, _FSSETXATTR, wanted)


def project_usage(fd: int, project: int) -> tuple[int, int]:
    """Bytes and inodes that a project takes on the filesystem of ``fd`` (Linux 5.14).

    Raises OSError (ESRCH where it counts no projects, ENOSYS)."""
    buffer = bytearray(_DQBLK.size)
    command = _GETQUOTA | _PROJECTS
    syscalls.syscall(syscalls.SYS_QUOTACTL_FD, fd, command, project, buffer)
    values = _DQBLK.unpack(buffer)
    return values[2], values[5]


def counts_projects(path: str) -> bool:
    """Whether the filesystem that holds ``path`` counts what projects take."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        project_usage(fd, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _attributes(fd: int) -> tuple[int, ...]:
    return _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
