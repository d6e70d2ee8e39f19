"""Serves the metrics over HTTP from threads of its own, so a scrape never holds up the loop.

Used by ``daemon.boot``. ``/v1/metrics`` is containerd's path, ``/metrics`` everybody else's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import disable_created_metrics
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from supervisord import __version__
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, FailedPrecondition
from supervisord.contracts.namespaces import NamespaceStore
from supervisord.contracts.tasks import Metric, TaskManager
from supervisord.services.counters import CallCounters

from .containers import ContainerCollector
from .daemon import DaemonCollector, LoopLag, Totals
from .grpc_calls import GrpcCollector

log = logging.getLogger(__name__)

PATHS = ("/v1/metrics", "/metrics")
_READ_TIME = 4.0

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """Make it with ``open``; end it with ``close``."""

    def __init__(self, server: WSGIServer, owner: TaskOwner) -> None:
        self._server = server
        self._owner = owner
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on; tells which where the address had port 0."""
        return int(self._server.server_port)

    @classmethod
    async def open(
        cls,
        address: str,
        counters: CallCounters,
        *,
        histogram: bool,
        tasks: TaskManager | None = None,
        namespaces: NamespaceStore | None = None,
        events: Callable[[], Mapping[str, int]] = dict,
        shims: Callable[[], int] = int,
        collections: Totals | None = None,
        damaged: Mapping[str, int] | None = None,
    ) -> MetricsServer:
        """Listens on ``address`` (HOST:PORT) and measures from now on.

        Raises FailedPrecondition if it cannot listen there."""
        loop = asyncio.get_running_loop()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # containerd has none
        registry = CollectorRegistry()
        for collector in (
            GrpcCollector(counters, histogram=histogram),
            DaemonCollector(__version__, events, shims, collections, damaged),
        ):
            registry.register(collector)
        if tasks is not None and namespaces is not None:
            reader = _TaskReader(loop, tasks, namespaces)
            registry.register(ContainerCollector(reader.read))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        owner = TaskOwner("metrics")
        try:
            server = _listening(address, _application(registry))
        except OSError as error:
            told = f"metrics.address: cannot listen on {address}: {error.strerror}"
            raise FailedPrecondition(told) from error
        owner.spawn(LoopLag(registry).measure(), "loop lag")
        return cls(server, owner)

    async def close(self) -> None:
        """Ends the listener and the measuring."""
        await self._owner.close()
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _TaskReader:
    """Asks the task manager, on its loop, from a scraping thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tasks: TaskManager, namespaces: NamespaceStore
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self._namespaces = namespaces

    def read(self) -> Sequence[tuple[str, Metric]]:
        """The statistics of all tasks; nothing when the daemon does not answer in time."""
        answer = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
        try:
            return answer.result(_READ_TIME + 1)
        except (TimeoutError, Error) as error:
            answer.cancel()
            log.warning("containers not measured", extra={"error": error})
            return []

    async def _gather(self) -> list[tuple[str, Metric]]:
        found: list[tuple[str, Metric]] = []
        async with asyncio.timeout(_READ_TIME):
            for namespace in self._namespaces.list():
                metrics = await self._tasks.metrics(namespace.name)
                found += [(namespace.name, metric) for metric in metrics]
        return found


class _Quiet(WSGIRequestHandler):
    timeout = 30  # seconds for a client to send its request

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("scraped", extra={"client": self.client_address[0]})


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


def _listening(address: str, application: Application) -> WSGIServer:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    kind = _Server6 if ":" in host else ThreadingWSGIServer
    return make_server(host, int(port), application, kind, handler_class=_Quiet)


def _application(registry: CollectorRegistry) -> Application:
    metrics: Application = make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") in PATHS:
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"metrics are at /v1/metrics and /metrics\n"]

    return serve
