"""One snapshotter on one unix socket."""

from __future__ import annotations

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.snapshots import Snapshotter
from supervisord.services.counters import CallCounters
from supervisord.services.listen import GrpcServer, Listen
from supervisord.services.server import bind

from .service import ProxyService

GRACE = 30.0
"""Seconds that calls may take to end after a stop was asked for."""


class SnapshotServer:
    """Serves from ``start`` to ``stop``; the snapshotter is closed by who made it. The socket
    belongs to ``uid`` and ``gid`` and nobody else may use it: whoever may mount what a snapshotter
    answers is as good as root."""

    def __init__(
        self, snapshotter: Snapshotter, address: str, *, uid: int = 0, gid: int = 0
    ) -> None:
        service = pb.DESCRIPTOR.services_by_name["Snapshots"]
        handler = bind(service, ProxyService(snapshotter), CallCounters())
        self._server = GrpcServer(Listen(address, uid, gid), [handler])

    async def start(self) -> None:
        """Raises InvalidArgument (a path that cannot be a socket), FailedPrecondition (somebody
        else serves there; a socket on which nobody answers is replaced)."""
        await self._server.start()

    async def stop(self, grace: float = GRACE) -> None:
        """Refuses new calls, lets those under way end, and removes the socket."""
        await self._server.stop(grace)
