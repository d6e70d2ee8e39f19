"""The gRPC server on the daemon's unix socket.

Owns the socket from ``start`` to ``stop``. Takes over a stale socket file only when nobody answers
on it, and never removes or overwrites a file that is no socket. gRPC itself binds the path, under
a umask, so the socket never has wider permissions than it ends up with.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing of ours forks with gRPC loaded

import grpc

from supervisord.contracts.errors import FailedPrecondition, InvalidArgument

MAX_MESSAGE = 16 << 20
"""Bytes in one message, in either direction, where the configuration says nothing else."""

_MAX_PATH = 107
_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen: the socket's path and owner, and the largest messages in bytes."""

    path: str
    uid: int = 0
    gid: int = 0
    max_receive: int = MAX_MESSAGE
    max_send: int = MAX_MESSAGE


class GrpcServer:
    """Serves bound handlers; see ``services.server.bind``."""

    def __init__(self, listen: Listen, handlers: Sequence[Any]) -> None:
        self._listen = listen
        self._server = grpc.aio.server(options=_options(listen))
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self._inode: tuple[int, int] | None = None

    async def start(self) -> None:
        """Binds and serves. Raises FailedPrecondition if somebody else holds the path."""
        path = self._listen.path
        claim(path)
        mask = os.umask(0o777 & ~_MODE)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {path}: {error}") from error
        finally:
            os.umask(mask)
        self._inode = own(path, self._listen.uid, self._listen.gid)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, gives those that run ``grace`` seconds, and removes the socket."""
        await self._server.stop(grace)
        if self._inode is not None:
            release(self._listen.path, self._inode)


def _options(listen: Listen) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", listen.max_receive),
        ("grpc.max_send_message_length", listen.max_send),
        ("grpc.max_concurrent_streams", 2**31 - 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.http2.lookahead_bytes", 4 << 20),
    ]


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


def own(path: str, uid: int, gid: int) -> tuple[int, int]:
    """Gives a socket that we have bound its owner and mode; answers its identity."""
    os.chown(path, uid, gid, follow_symlinks=False)
    os.chmod(path, _MODE)  # noqa: PTH101
    made = os.lstat(path)
    return made.st_dev, made.st_ino


def release(path: str, identity: tuple[int, int]) -> None:
    """Removes the socket, unless somebody else's is there by now."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if (found.st_dev, found.st_ino) == identity:
        Path(path).unlink(missing_ok=True)
