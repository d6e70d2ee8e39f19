"""The plugins of sandboxes and streams: store, controllers, stream manager, and their services."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisord.contracts.plugins import GrpcService, PluginContext, Registration

GRPC = "io.containerd.grpc.v1"
METADATA = "io.containerd.metadata.v1"
GC = "io.containerd.gc.v1"
EVENT = "io.containerd.event.v1"
INTERNAL = "io.containerd.internal.v1"
RUNTIME = "io.containerd.runtime.v2"
STORE = "io.containerd.sandbox.store.v1"
STREAMING = "io.containerd.streaming.v1"
CONTROLLER = "io.containerd.sandbox.controller.v1"


async def _shim_controller(context: PluginContext) -> Any:
    from supervisord.runtime.sandboxes import ShimSandboxes

    tasks = context.get(RUNTIME, "task")
    sandboxes = ShimSandboxes(
        replace(tasks.settings, state=context.state),
        context.get(STORE, "local"),
        tasks,
        tasks.groups,
        context.get(EVENT),
        context.get(INTERNAL, "zygote"),
        tasks.runtimes,
    )
    context.on_close(sandboxes.close)
    await sandboxes.open()
    tasks.attach(sandboxes)
    return sandboxes


async def _streams(context: PluginContext) -> Any:
    from supervisord.streaming.manager import Streams

    streams = Streams()
    context.get(METADATA).garbage.attach(streams)
    return streams


async def _streaming_service(context: PluginContext) -> Any:
    from protos.containerd.services.streaming.v1 import streaming_pb2
    from supervisord.services.streaming import StreamingService

    descriptor = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]
    return GrpcService(descriptor, StreamingService(context.get(STREAMING, "manager")))


async def _controller_service(context: PluginContext) -> Any:
    from protos.containerd.services.sandbox.v1 import sandbox_pb2
    from supervisord.services.sandbox_controller import SandboxControllerService

    descriptor = sandbox_pb2.DESCRIPTOR.services_by_name["Controller"]
    service = SandboxControllerService(lambda: context.all(CONTROLLER), context.get(STORE, "local"))
    return GrpcService(descriptor, service)


async def _store(context: PluginContext) -> Any:
    return context.get(METADATA).sandboxes


async def _store_service(context: PluginContext) -> Any:
    from protos.containerd.services.sandbox.v1 import sandbox_pb2
    from supervisord.services.sandbox_store import SandboxStoreService

    descriptor = sandbox_pb2.DESCRIPTOR.services_by_name["Store"]
    return GrpcService(descriptor, SandboxStoreService(context.get(STORE, "local")))


REGISTRATIONS = (
    Registration(STORE, "local", _store, (METADATA, GC)),
    Registration(CONTROLLER, "shim", _shim_controller, (RUNTIME, STORE, EVENT, INTERNAL)),
    Registration(STREAMING, "manager", _streams, (METADATA,)),
    Registration(GRPC, "streaming", _streaming_service, (STREAMING,)),
    Registration(GRPC, "sandboxes", _store_service, (STORE,)),
    Registration(GRPC, "sandbox-controllers", _controller_service, (CONTROLLER, STORE)),
)
