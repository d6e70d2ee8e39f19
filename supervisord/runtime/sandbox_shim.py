"""A connection to a shim that is a sandbox, and its sandbox service called in the daemon's terms.

Beside it the same connection serves the task service (``shim``). Deadlines are for shims that do
not answer; creating and starting a sandbox may take long, but not for ever: its name is locked.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.runtime.sandbox.v1 import sandbox_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.sandboxes import (
    CreateSandbox,
    Platform,
    SandboxExit,
    SandboxStatus,
    StartedSandbox,
)
from supervisord.contracts.tasks import Metric
from supervisord.contracts.typed import from_any
from supervisord.ttrpc.client import Client

from .bundle import ShimRecord

R = TypeVar("R", bound=Message)

_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
_CALL_SECONDS = 60.0
_MAKE_SECONDS = 300.0
_STATUS_SECONDS = 5.0
_SHUTDOWN_SECONDS = 30.0


class SandboxShim:
    """One shim as the holder of one sandbox."""

    def __init__(self, client: Client, namespace: str, id: str, record: ShimRecord) -> None:
        self.client = client
        self.id = id
        self._record = record
        self._metadata = {"containerd-namespace-ttrpc": namespace}

    @property
    def closed(self) -> Awaitable[None]:
        """Done when the connection is lost."""
        return self.client.closed

    @property
    def is_lost(self) -> bool:
        """Whether the connection is lost."""
        return self.client.is_lost

    def close(self) -> None:
        """Ends the connection, not the shim."""
        self.client.close()

    async def _call(
        self,
        method: str,
        request: Message,
        response: type[R],
        seconds: float | None = _CALL_SECONDS,
    ) -> R:
        return await self.client.call(
            _SERVICE, method, request, response, timeout=seconds, metadata=self._metadata
        )

    async def create(self, bundle: str, wanted: CreateSandbox) -> None:
        """The first call to a new shim."""
        request = pb.CreateSandboxRequest(
            sandbox_id=self.id,
            bundle_path=bundle,
            rootfs=[
                types_pb2.Mount(
                    type=mount.type,
                    source=mount.source,
                    target=mount.target,
                    options=mount.options,
                )
                for mount in wanted.rootfs
            ],
            netns_path=wanted.netns_path,
            annotations=wanted.annotations,
        )
        if wanted.options:
            request.options.type_url = wanted.options.type_url
            request.options.value = wanted.options.value
        await self._call("CreateSandbox", request, pb.CreateSandboxResponse, _MAKE_SECONDS)

    async def start(self) -> StartedSandbox:
        """Makes it ready."""
        request = pb.StartSandboxRequest(sandbox_id=self.id)
        answer = await self._call("StartSandbox", request, pb.StartSandboxResponse, _MAKE_SECONDS)
        return StartedSandbox(
            self.id,
            answer.pid,
            _nanoseconds(answer.created_at),
            endpoint(self._record),
            self._record.version,
            from_any(answer.spec),
        )

    async def platform(self) -> Platform:
        """What its containers run on."""
        request = pb.PlatformRequest(sandbox_id=self.id)
        found = (await self._call("Platform", request, pb.PlatformResponse)).platform
        return Platform(found.os, found.architecture, found.variant)

    async def stop(self, seconds: float) -> None:
        """Ends what runs in it, given so long to end by itself."""
        request = pb.StopSandboxRequest(sandbox_id=self.id, timeout_secs=int(seconds))
        await self._call("StopSandbox", request, pb.StopSandboxResponse, seconds + _CALL_SECONDS)

    async def wait(self) -> SandboxExit:
        """Returns when it has been stopped."""
        request = pb.WaitSandboxRequest(sandbox_id=self.id)
        answer = await self._call("WaitSandbox", request, pb.WaitSandboxResponse, None)
        return SandboxExit(answer.exit_status, _nanoseconds(answer.exited_at))

    async def status(self, *, verbose: bool) -> SandboxStatus:
        """What it says of itself."""
        request = pb.SandboxStatusRequest(sandbox_id=self.id, verbose=verbose)
        answer = await self._call(
            "SandboxStatus", request, pb.SandboxStatusResponse, _STATUS_SECONDS
        )
        return SandboxStatus(
            answer.sandbox_id or self.id,
            answer.pid,
            answer.state,
            dict(answer.info),
            _nanoseconds(answer.created_at),
            _nanoseconds(answer.exited_at),
            from_any(answer.extra),
            endpoint(self._record),
            self._record.version,
        )

    async def metrics(self) -> Metric:
        """What it uses."""
        request = pb.SandboxMetricsRequest(sandbox_id=self.id)
        answer = await self._call("SandboxMetrics", request, pb.SandboxMetricsResponse)
        found = answer.metrics
        return Metric(found.id or self.id, _nanoseconds(found.timestamp), from_any(found.data))

    async def shutdown(self) -> None:
        """Has the shim end, with all that is in it."""
        request = pb.ShutdownSandboxRequest(sandbox_id=self.id)
        await self._call("ShutdownSandbox", request, pb.ShutdownSandboxResponse, _SHUTDOWN_SECONDS)


def endpoint(record: ShimRecord) -> str:
    """Where a shim serves, as clients of the sandbox API are told."""
    return f"ttrpc+unix://{record.address.removeprefix('unix://')}"


def _nanoseconds(time: Timestamp) -> int:
    return max(0, time.seconds * 1_000_000_000 + time.nanos)
