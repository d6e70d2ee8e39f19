"""The gRPC server on the daemon's unix socket.

Owns the socket from ``start`` to ``stop`` (see ``services.sockets``), the connections of its
clients and the tasks of their calls. Why it is not grpcio's: docs/decisions, "our own gRPC server".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisord.aio.owner import TaskOwner

from .server import Method
from .sockets import Identity, listening, release
from .transport import Transport

MAX_MESSAGE = 16 << 20
"""Bytes in one message, in either direction, where the configuration says nothing else."""

_HANG_UP = 1.0


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen: the socket's path and owner, and the largest messages in bytes."""

    path: str
    uid: int = 0
    gid: int = 0
    max_receive: int = MAX_MESSAGE
    max_send: int = MAX_MESSAGE


class GrpcServer:
    """Serves bound methods; see ``services.server.bind``."""

    def __init__(self, listen: Listen, services: Iterable[Mapping[str, Method]]) -> None:
        self._listen = listen
        self._methods: dict[str, Method] = {}
        for methods in services:
            for path, method in methods.items():
                if path in self._methods:
                    raise ValueError(f"{path} is served twice")
                self._methods[path] = method
        self._owner = TaskOwner("grpc")
        self._connections: set[Transport] = set()
        self._server: asyncio.AbstractServer | None = None
        self._identity: Identity | None = None

    @property
    def calls(self) -> int:
        """How many calls have a task."""
        return len(self._owner)

    async def start(self) -> None:
        """Binds and serves. Raises FailedPrecondition if somebody else holds the path."""
        listen = self._listen
        sock, self._identity = listening(listen.path, listen.uid, listen.gid)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, sock=sock)

    async def stop(self, grace: float) -> None:
        """Refuses new calls, gives those that run ``grace`` seconds, and removes the socket."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._identity is not None:
            release(self._listen.path, self._identity)
        for connection in list(self._connections):
            connection.refuse_more()
        await self._owner.close(grace)
        for connection in list(self._connections):
            connection.hang_up()
        gone = [connection.gone for connection in self._connections]
        if gone:
            await asyncio.wait(gone, timeout=_HANG_UP)
        for connection in list(self._connections):  # a client that does not read
            connection.abort()
            await connection.gone

    def _accept(self) -> Transport:
        listen = self._listen
        return Transport(
            self._methods, self._owner, self._connections, listen.max_receive, listen.max_send
        )
