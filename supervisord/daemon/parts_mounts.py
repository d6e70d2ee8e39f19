"""The plugins of the mount manager: its handlers by the types that they mount, itself, its service.

Other packages bring more handlers under the same type of plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supervisord.contracts.plugins import GrpcService, PluginContext, Registration

METADATA = "io.containerd.metadata.v1"
HANDLER = "io.containerd.mount-handler.v1"
MANAGER = "io.containerd.mount-manager.v1"
GRPC = "io.containerd.grpc.v1"


async def _loop(context: PluginContext) -> Any:
    from supervisord.mounting.handlers import LoopHandler

    return LoopHandler()


async def _erofs(context: PluginContext) -> Any:
    from supervisord.mounting.handlers import ErofsHandler

    return ErofsHandler()


async def _manager(context: PluginContext) -> Any:
    from supervisord.mounting.manager import Manager

    roots = [str(Path(context.root).parent.resolve()), *map(str, context.config["roots"])]
    manager = await Manager.open(Path(context.state), context.all(HANDLER), roots)
    context.on_close(manager.close)
    context.get(METADATA).garbage.attach(manager)
    return manager


async def _service(context: PluginContext) -> Any:
    from protos.containerd.services.mounts.v1 import mounts_pb2
    from supervisord.services.mounts import MountsService

    descriptor = mounts_pb2.DESCRIPTOR.services_by_name["Mounts"]
    return GrpcService(descriptor, MountsService(context.get(MANAGER)))


REGISTRATIONS = (
    Registration(HANDLER, "loop", _loop),
    Registration(HANDLER, "erofs", _erofs),
    Registration(
        MANAGER,
        "sqlite",
        _manager,
        (METADATA, HANDLER),
        config={"roots": []},
        config_help={
            "roots": "Folders, beside the daemon's own, in which mounts may have directories and "
            "file systems made (`mkdir/`, `mkfs/`)."
        },
    ),
    Registration(GRPC, "mounts", _service, (MANAGER,)),
)
