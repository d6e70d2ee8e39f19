"""containerd.services.mounts.v1: activations of mounts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.containerd.services.mounts.v1 import mounts_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.mounts import ActivateOptions, Activation, MountManager

from .call import Call
from .wire import from_mounts, paths, required, timestamp, to_mounts


class MountsService:
    """Hands requests to the mount manager."""

    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    async def activate(self, call: Call, request: pb.ActivateRequest) -> pb.ActivateResponse:
        options = ActivateOptions(dict(request.labels), request.temporary)
        mounts = from_mounts(request.mounts)
        made = await self._manager.activate(call.scope, request.name, mounts, options)
        return pb.ActivateResponse(info=_to_wire(made))

    async def deactivate(self, call: Call, request: pb.DeactivateRequest) -> None:
        await self._manager.deactivate(call.namespace, request.name)

    async def info(self, call: Call, request: pb.InfoRequest) -> pb.InfoResponse:
        found = self._manager.info(call.namespace, request.name)
        return pb.InfoResponse(info=_to_wire(found))

    async def update(self, call: Call, request: pb.UpdateRequest) -> pb.UpdateResponse:
        required(request.HasField("info"), "info")
        wanted = Activation(request.info.name, labels=dict(request.info.labels))
        fields = paths(request.update_mask)
        updated = await self._manager.update(call.namespace, wanted, fields)
        return pb.UpdateResponse(info=_to_wire(updated))

    async def list(self, call: Call, request: pb.ListRequest) -> AsyncIterator[pb.ListMessage]:
        for found in self._manager.list(call.namespace, tuple(request.filters)):
            yield pb.ListMessage(info=_to_wire(found))


def _to_wire(activation: Activation) -> types_pb2.ActivationInfo:
    active = [
        types_pb2.ActiveMount(
            mount=to_mounts([each.mount])[0],
            mounted_at=timestamp(each.mounted_at),
            mount_point=each.mount_point,
            data=each.data,
        )
        for each in activation.active
    ]
    return types_pb2.ActivationInfo(
        name=activation.name,
        active=active,
        system=to_mounts(activation.system),
        labels=activation.labels,
    )
