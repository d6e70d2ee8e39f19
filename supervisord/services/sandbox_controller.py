"""containerd.services.sandbox.v1.Controller: the running instances of sandboxes.

A request names the controller ("sandboxer") that it is for. One without the record, as older
clients send it, takes that from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protos.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.contracts.sandboxes import CreateSandbox, SandboxController, SandboxStore
from supervisord.contracts.typed import from_any

from .call import Call
from .sandbox_wire import from_sandbox
from .wire import from_mounts, required, timestamp, to_any


class SandboxControllerService:
    """Hands each request to its controller. ``controllers`` tells them by name."""

    def __init__(
        self, controllers: Callable[[], Mapping[str, SandboxController]], store: SandboxStore
    ) -> None:
        self._controllers = controllers
        self._store = store

    def _controller(self, name: str) -> SandboxController:
        if not name:
            raise InvalidArgument(
                "sandboxer: invalid argument: sandbox controller name can not be empty"
            )
        controller = self._controllers().get(name)
        if controller is None:
            raise NotFound(f"not found: failed to get sandbox controller by {name}")
        return controller

    async def create(
        self, call: Call, request: pb.ControllerCreateRequest
    ) -> pb.ControllerCreateResponse:
        controller = self._controller(request.sandboxer)
        id = request.sandbox_id
        if request.HasField("sandbox"):
            sandbox = from_sandbox(request.sandbox)
            if id and id != sandbox.id:
                raise InvalidArgument(f"sandbox.sandbox_id: {sandbox.id!r} is not {id!r}")
        else:
            sandbox = self._store.get(call.namespace, id)
        wanted = CreateSandbox(
            sandbox=sandbox,
            rootfs=tuple(from_mounts(request.rootfs)),
            options=from_any(request.options),
            netns_path=request.netns_path,
            annotations=dict(request.annotations),
        )
        await controller.create(call.namespace, wanted)
        return pb.ControllerCreateResponse(sandbox_id=sandbox.id)

    async def start(
        self, call: Call, request: pb.ControllerStartRequest
    ) -> pb.ControllerStartResponse:
        controller = self._controller(request.sandboxer)
        started = await controller.start(call.namespace, request.sandbox_id)
        return pb.ControllerStartResponse(
            sandbox_id=started.id,
            pid=started.pid,
            created_at=timestamp(started.created_at),
            labels=started.labels,
            address=started.address,
            version=started.version,
            spec=to_any(started.spec),
        )

    async def platform(
        self, call: Call, request: pb.ControllerPlatformRequest
    ) -> pb.ControllerPlatformResponse:
        controller = self._controller(request.sandboxer)
        found = await controller.platform(call.namespace, request.sandbox_id)
        platform = types_pb2.Platform(
            os=found.os, architecture=found.architecture, variant=found.variant
        )
        return pb.ControllerPlatformResponse(platform=platform)

    async def stop(
        self, call: Call, request: pb.ControllerStopRequest
    ) -> pb.ControllerStopResponse:
        controller = self._controller(request.sandboxer)
        await controller.stop(call.namespace, request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def wait(
        self, call: Call, request: pb.ControllerWaitRequest
    ) -> pb.ControllerWaitResponse:
        controller = self._controller(request.sandboxer)
        ended = await controller.wait(call.namespace, request.sandbox_id)
        return pb.ControllerWaitResponse(
            exit_status=ended.exit_status, exited_at=timestamp(ended.exited_at)
        )

    async def status(
        self, call: Call, request: pb.ControllerStatusRequest
    ) -> pb.ControllerStatusResponse:
        controller = self._controller(request.sandboxer)
        status = await controller.status(
            call.namespace, request.sandbox_id, verbose=request.verbose
        )
        return pb.ControllerStatusResponse(
            sandbox_id=status.id,
            pid=status.pid,
            state=status.state,
            info=status.info,
            created_at=timestamp(status.created_at),
            exited_at=timestamp(status.exited_at),
            extra=to_any(status.extra),
            address=status.address,
            version=status.version,
        )

    async def shutdown(
        self, call: Call, request: pb.ControllerShutdownRequest
    ) -> pb.ControllerShutdownResponse:
        await self._controller(request.sandboxer).shutdown(call.namespace, request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def metrics(
        self, call: Call, request: pb.ControllerMetricsRequest
    ) -> pb.ControllerMetricsResponse:
        controller = self._controller(request.sandboxer)
        found = await controller.metrics(call.namespace, request.sandbox_id)
        metric = types_pb2.Metric(
            id=found.container_id, timestamp=timestamp(found.timestamp), data=to_any(found.data)
        )
        return pb.ControllerMetricsResponse(metrics=metric)

    async def update(
        self, call: Call, request: pb.ControllerUpdateRequest
    ) -> pb.ControllerUpdateResponse:
        controller = self._controller(request.sandboxer)
        required(request.HasField("sandbox"), "sandbox")
        await controller.update(
            call.namespace,
            request.sandbox_id,
            from_sandbox(request.sandbox),
            tuple(request.fields),
        )
        return pb.ControllerUpdateResponse()
