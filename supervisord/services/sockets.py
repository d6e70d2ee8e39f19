"""Unix sockets in the filesystem: taking a path, owning what is bound there, giving it back.

A stale socket is dropped only when nobody answers on it; a file that is no socket is never removed
or overwritten, nor a socket that somebody else has bound in the meantime.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument

MODE = 0o660
"""Permissions of the daemon's sockets: whoever may write to one is as good as root."""

_MAX_PATH = 107
_BACKLOG = 512


Identity = tuple[int, int, int]
"""Device, inode and time of birth: inodes alone are used again."""


def listening(path: str, uid: int, gid: int) -> tuple[socket.socket, Identity]:
    """A listening socket at the path, and its identity for ``release``; raises as ``claim``."""
    claim(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o777 & ~MODE)
        try:
            server.bind(path)
        finally:
            os.umask(mask)
        identity = own(path, uid, gid)
        server.listen(_BACKLOG)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise FailedPrecondition(f"cannot listen on {path}: {error}") from error
    return server, identity


def claim(path: str) -> None:
    """Makes the path free to bind: makes its folder, and drops a socket on which nobody answers.

    Raises InvalidArgument (a path that is too long or relative), FailedPrecondition (another
    process answers, or the file is no socket)."""
    if not path.startswith("/"):
        raise InvalidArgument(f"address: {path!r} must be an absolute path")
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidArgument(f"address: {path!r} is longer than {_MAX_PATH} bytes")
    Path(path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"address: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise FailedPrecondition(f"address: cannot probe {path}: {error}") from error
        else:
            raise FailedPrecondition(f"address: another process serves {path}")
    Path(path).unlink(missing_ok=True)


def own(path: str, uid: int, gid: int) -> Identity:
    """Gives a socket that we have bound its owner and mode; answers its identity."""
    os.chown(path, uid, gid, follow_symlinks=False)
    os.chmod(path, MODE)  # noqa: PTH101
    made = os.lstat(path)
    return made.st_dev, made.st_ino, made.st_mtime_ns


def release(path: str, identity: Identity) -> None:
    """Removes the socket, unless somebody else's is there by now."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if (found.st_dev, found.st_ino, found.st_mtime_ns) == identity:
        Path(path).unlink(missing_ok=True)
