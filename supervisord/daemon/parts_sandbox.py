"""The plugins of sandboxes and streams: store, controllers, stream manager, and their services."""

from __future__ import annotations

from typing import Any

from supervisord.contracts.plugins import GrpcService, PluginContext, Registration

GRPC = "io.containerd.grpc.v1"
METADATA = "io.containerd.metadata.v1"
GC = "io.containerd.gc.v1"
STORE = "io.containerd.sandbox.store.v1"


async def _store(context: PluginContext) -> Any:
    return context.get(METADATA).sandboxes


async def _store_service(context: PluginContext) -> Any:
    from protos.containerd.services.sandbox.v1 import sandbox_pb2
    from supervisord.services.sandbox_store import SandboxStoreService

    descriptor = sandbox_pb2.DESCRIPTOR.services_by_name["Store"]
    return GrpcService(descriptor, SandboxStoreService(context.get(STORE, "local")))


REGISTRATIONS = (
    Registration(STORE, "local", _store, (METADATA, GC)),
    Registration(GRPC, "sandboxes", _store_service, (STORE,)),
)
