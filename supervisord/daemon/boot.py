"""Brings the daemon up and takes it down: folders, lock, plugins, sockets.

``Daemon.start`` is one list of effects, each of which pushes its undo at once; ``stop`` runs them
in reverse, also after a start that failed half-way. Clients are served last and refused first.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from supervisord.contracts.plugins import GrpcService, Registration
from supervisord.linux.durable import make_folder

from .config import Config
from .lock import RootLock
from .notify import set_oom_score
from .plugins import Graph

if TYPE_CHECKING:
    from supervisord.services.counters import CallCounters

log = logging.getLogger(__name__)

GRPC = "io.containerd.grpc.v1"
TTRPC = "io.containerd.ttrpc.v1"
SERVICE = "io.containerd.service.v1"
RUNTIME = "io.containerd.runtime.v2"
COLLECTOR = "io.containerd.gc.v1"
EVENTS = "io.containerd.event.v1"
_GRACE = 0.5


class Daemon:
    """One daemon. ``start`` once, ``stop`` once."""

    def __init__(self, config: Config, registrations: Sequence[Registration]) -> None:
        top = config["top"]
        self.config = config
        self.graph = Graph(
            registrations,
            root=config.root,
            state=config.state,
            address=config.address,
            ttrpc_address=config.ttrpc_address,
            config=config.plugins,
            required=top["required_plugins"],
            disabled=top["disabled_plugins"],
        )
        self._undo = AsyncExitStack()

    async def start(self) -> None:
        """Returns once clients are served.

        Raises RootTaken, GraphError, contracts.errors.Error (a socket), OSError (a folder). What
        was done is undone by ``stop``, which the caller runs in any case."""
        begin = time.perf_counter()
        set_oom_score(self.config["top"]["oom_score"])
        _make_folders(self.config)
        for folder, noun in ((self.config.root, "root"), (self.config.state, "state")):
            lock = RootLock(folder, noun)
            lock.take()
            self._undo.callback(lock.drop)
        self._undo.push_async_callback(self.graph.close)
        await self.graph.start()
        await self._serve_ttrpc()
        counters = await self._serve_grpc()
        await self._serve_metrics(counters)
        log.info(
            "ready",
            extra={
                "address": self.config.address,
                "pid": os.getpid(),
                "seconds": round(time.perf_counter() - begin, 3),
            },
        )

    async def stop(self) -> None:
        """Undoes what ``start`` did, in reverse. Containers go on."""
        await self._undo.aclose()

    async def _serve_grpc(self) -> CallCounters:
        from supervisord.services.counters import CallCounters
        from supervisord.services.listen import GrpcServer, Listen
        from supervisord.services.server import bind

        grpc = self.config["grpc"]
        counters = CallCounters()
        handlers = [
            bind(service.descriptor, service.implementation, counters, service.name)
            for service in grpc_services(self.graph)
        ]
        listen = Listen(
            self.config.address,
            grpc["uid"],
            grpc["gid"],
            grpc["max_recv_message_size"],
            grpc["max_send_message_size"],
        )
        server = GrpcServer(listen, handlers)
        self._undo.push_async_callback(server.stop, _GRACE)
        await server.start()
        self._undo.callback(self._announce_stop)
        return counters

    def _announce_stop(self) -> None:
        """Watchers of health learn of the stop while they are still connected."""
        for service in grpc_services(self.graph):
            stops = getattr(service.implementation, "daemon_stops", None)
            if stops is not None:
                stops()

    async def _serve_ttrpc(self) -> None:
        from supervisord.services.sockets import listening, release
        from supervisord.ttrpc.server import Server

        ttrpc = self.config["ttrpc"]
        path = self.config.ttrpc_address
        server = Server(list(self.graph.instances(TTRPC).values()), "ttrpc")
        sock, identity = listening(path, ttrpc["uid"], ttrpc["gid"])
        self._undo.callback(release, path, identity)
        self._undo.push_async_callback(server.close, 0.5)
        await server.start(sock)

    async def _serve_metrics(self, counters: CallCounters) -> None:
        address = self.config["metrics"]["address"]
        if not address:
            return
        from supervisord.metadata.rows import DAMAGED
        from supervisord.metrics.server import MetricsServer

        tasks = self.graph.instances(RUNTIME).get("task")
        exchange = self.graph.instances(EVENTS).get("exchange")
        collector = self.graph.instances(COLLECTOR).get("scheduler")
        server = await MetricsServer.open(
            address,
            counters,
            histogram=self.config["metrics"]["grpc_histogram"],
            tasks=tasks,
            namespaces=self.graph.instances(SERVICE).get("namespaces-service"),
            events=lambda: getattr(exchange, "topics", {}),
            shims=lambda: 0 if tasks is None else len(tasks),
            collections=getattr(collector, "totals", None),
            damaged=DAMAGED,
        )
        self._undo.push_async_callback(server.close)


def grpc_services(graph: Graph) -> list[GrpcService]:
    """What the gRPC plugins offer, in the order of their start."""
    found: list[GrpcService] = []
    for instance in graph.instances(GRPC).values():
        found += [instance] if isinstance(instance, GrpcService) else list(instance)
    return found


def _make_folders(config: Config) -> None:
    """``root`` is private; ``state`` may be passed through by a container's mapped root."""
    for key, path, mode in (("root", config.root, 0o700), ("state", config.state, 0o711)):
        try:
            make_folder(Path(path), mode)
            Path(path).chmod(mode)
        except OSError as error:
            raise OSError(f"{key}: cannot make {path}: {error.strerror}") from error
