"""grpc.health.v1: whether the daemon, or one of its services, serves.

Bound like every other service; grpcio-health-checking brings only the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Set

from grpc_health.v1 import health_pb2 as pb

from supervisord.contracts.errors import NotFound

from .call import Call

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """All services share one state: serving from boot until ``daemon_stops``. ``services`` answers
    the full names of all that are bound; it is asked once they are."""

    def __init__(self, services: Callable[[], Set[str]]) -> None:
        self._services = services
        self._stopped = asyncio.Event()

    def daemon_stops(self) -> None:
        """From now on nothing is serving; watchers are told."""
        self._stopped.set()

    def _status(self, service: str) -> pb.HealthCheckResponse.ServingStatus:
        if service and service not in self._services():
            return _UNKNOWN
        return NOT_SERVING if self._stopped.is_set() else SERVING

    async def check(self, call: Call, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            raise NotFound(f"unknown service {request.service!r}")
        return pb.HealthCheckResponse(status=status)

    async def list(self, call: Call, request: object) -> pb.HealthListResponse:
        response = pb.HealthListResponse()
        for service in ("", *sorted(self._services())):
            response.statuses[service].status = self._status(service)
        return response

    async def watch(
        self, call: Call, request: pb.HealthCheckRequest
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The state now, and once more when it changes."""
        yield pb.HealthCheckResponse(status=self._status(request.service))
        await self._stopped.wait()
        yield pb.HealthCheckResponse(status=self._status(request.service))
