"""Mounts that show files with other owners (id-mapped mounts, Linux 5.12).

What is stored as user 0 is seen as the host's user for the container's root, and the other way
round; nothing on the disk changes, and all containers share one copy. The kernel takes the map from
a user namespace, which takes a process to make. That process is never seen by anybody: it runs no
code of ours but to wait for its end, has no exit signal (so no reaper finds it), and ends with the
thread that made it. Blocking.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from supervisord.contracts.errors import InvalidArgument

from . import mount_options as opts
from . import syscalls

ALL = "0:0:4294967295"
"""The map that leaves every id as it is."""

_INVALID = 2**32 - 1
_MOST_EXTENTS = 340  # user_namespaces(7)

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_IDMAP = 0x100000
_MOUNT_ATTR_ATIME = 0x70
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MS_PRIVATE = 1 << 18
_ATTRS = (
    (opts.RDONLY, 0x1),
    (opts.NOSUID, 0x2),
    (opts.NODEV, 0x4),
    (opts.NOEXEC, 0x8),
    (opts.NOATIME, 0x10),
    (opts.NODIRATIME, 0x80),
)

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_WALL = 0x40000000

_holding = ctypes.PyDLL(None, use_errno=True)
"""The C library without letting go of the GIL, so that the child is the only thread in itself."""


def extents(text: str, option: str) -> list[tuple[int, int, int]]:
    """The map ``CONTAINER:HOST:LENGTH[,...]``, each as numbers.

    Raises InvalidArgument that names ``option``."""
    found = []
    for extent in text.split(","):
        parts = extent.split(":")
        if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise InvalidArgument(f"{option}: {text!r} is not CONTAINER:HOST:LENGTH")
        inside, outside, length = map(int, parts)
        if not length or max(inside, outside) + length > _INVALID:
            raise InvalidArgument(f"{option}: {extent!r} does not map ids from 0 to {_INVALID - 1}")
        found.append((inside, outside, length))
    if len(found) > _MOST_EXTENTS:
        raise InvalidArgument(f"{option}: more than {_MOST_EXTENTS} parts")
    return found


@contextmanager
def user_namespace(uidmap: str, gidmap: str) -> Iterator[int]:
    """A descriptor of a user namespace with these maps; a map that is "" changes nothing.

    Raises InvalidArgument (a malformed map, or one that the kernel refuses), OSError."""
    maps = {
        "uid_map": extents(uidmap or ALL, "uidmap"),
        "gid_map": extents(gidmap or ALL, "gidmap"),
    }
    pid = _child()
    try:
        for name, wanted in maps.items():
            text = "".join(f"{inside} {outside} {length}\n" for inside, outside, length in wanted)
            _write_map(f"/proc/{pid}/{name}", text)
        userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WALL)
    try:
        yield userns
    finally:
        os.close(userns)


def clone(source: str, flags: int, userns: int) -> int:
    """A descriptor of a mount that is attached nowhere: ``source`` (with all below it where
    ``flags`` has REC) with its owners mapped and the attributes of ``flags``.

    Raises InvalidArgument where its filesystem cannot map ids, OSError."""
    recursive = _AT_RECURSIVE if flags & opts.REC else 0
    raw = os.fsencode(source) + b"\0"
    how = _OPEN_TREE_CLONE | os.O_CLOEXEC | recursive
    tree = syscalls.syscall(syscalls.SYS_OPEN_TREE, _AT_FDCWD, raw, how)
    try:
        wanted = _MOUNT_ATTR_IDMAP | sum(bit for flag, bit in _ATTRS if flags & flag)
        cleared = _MOUNT_ATTR_ATIME if flags & opts.NOATIME else 0
        attributes = struct.pack("QQQQ", wanted, cleared, _MS_PRIVATE, userns)
        how = _AT_EMPTY_PATH | recursive
        syscalls.syscall(syscalls.SYS_MOUNT_SETATTR, tree, b"\0", how, attributes, len(attributes))
    except OSError as error:
        os.close(tree)
        if error.errno == errno.EINVAL:
            raise InvalidArgument(f"mount: the filesystem of {source!r} cannot map ids") from None
        raise
    return tree


def attach(tree: int, target: str) -> None:
    """Puts a mount that is attached nowhere on ``target``. Raises OSError."""
    raw = os.fsencode(target) + b"\0"
    empty = _MOVE_MOUNT_F_EMPTY_PATH
    syscalls.syscall(syscalls.SYS_MOVE_MOUNT, tree, b"\0", _AT_FDCWD, raw, empty)


def bind(source: str, target: str, flags: int, userns: int) -> None:
    """A bind mount with its owners mapped. Raises as ``clone``."""
    tree = clone(source, flags, userns)
    try:
        attach(tree, target)
    finally:
        os.close(tree)


def _write_map(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        if error.errno == errno.EINVAL:
            short = text.strip().replace("\n", ", ")
            raise InvalidArgument(
                f"{path.rpartition('/')[2]}: the kernel refuses {short}"
            ) from None
        raise
    finally:
        os.close(fd)


def _child() -> int:
    """A process in a new user namespace that does nothing until it is killed."""
    parent = os.getpid()
    arguments = struct.pack("11Q", _CLONE_NEWUSER, *[0] * 10)
    # No handler of ours may run over there: it would write into pipes that both share.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        number = ctypes.c_long(syscalls.SYS_CLONE3)
        size = ctypes.c_size_t(len(arguments))
        pid = int(_holding.syscall(number, ctypes.c_char_p(arguments), size))
        if pid == 0:
            _holding.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            while _holding.getppid() == parent:
                _holding.pause()
            _holding._exit(0)
        code = ctypes.get_errno()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid < 0:
        raise OSError(code, f"user namespace: {os.strerror(code)}")
    return pid
