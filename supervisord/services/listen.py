"""The gRPC server on the daemon's unix socket.

Owns the socket from ``start`` to ``stop`` (see ``services.sockets``). gRPC itself binds the path,
under a umask, so the socket never has wider permissions than it ends up with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing of ours forks with gRPC loaded
# The older listener has one thread less to wake for a call: a fifth of a call's processor time.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

import grpc

from supervisord.contracts.errors import FailedPrecondition

from .sockets import MODE, Identity, claim, own, release

MAX_MESSAGE = 16 << 20
"""Bytes in one message, in either direction, where the configuration says nothing else."""


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
        self._identity: Identity | None = None

    async def start(self) -> None:
        """Binds and serves. Raises FailedPrecondition if somebody else holds the path."""
        path = self._listen.path
        claim(path)
        mask = os.umask(0o777 & ~MODE)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {path}: {error}") from error
        finally:
            os.umask(mask)
        self._identity = own(path, self._listen.uid, self._listen.gid)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, gives those that run ``grace`` seconds, and removes the socket."""
        await self._server.stop(grace)
        if self._identity is not None:
            release(self._listen.path, self._identity)


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
