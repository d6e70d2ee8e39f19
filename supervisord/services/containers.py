"""containerd.services.containers.v1: container records.

Replies are copies of the serialized records that the store keeps; only Create and Update decode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.containerd.services.containers.v1 import containers_pb2 as pb
from supervisord.contracts.containers import Container, ContainerStore, Runtime
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.typed import from_any

from .call import Call
from .wire import paths, record, records, required, typed_map


def _from_wire(container: pb.Container) -> Container:
    return Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=Runtime(container.runtime.name, from_any(container.runtime.options)),
        spec=from_any(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        extensions=typed_map(container.extensions),
        sandbox=container.sandbox,
    )


class ContainersService:
    """Every reply holds the container (or each container) as its field 1."""

    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    async def get(self, call: Call, request: pb.GetContainerRequest) -> bytes:
        return record(1, self._store.record(call.namespace, request.id))

    async def list(self, call: Call, request: pb.ListContainersRequest) -> bytes:
        return records(1, self._store.records(call.namespace, request.filters))

    async def list_stream(
        self, call: Call, request: pb.ListContainersRequest
    ) -> AsyncIterator[bytes]:
        for container in self._store.records(call.namespace, request.filters):
            yield record(1, container)

    async def create(self, call: Call, request: pb.CreateContainerRequest) -> bytes:
        required(request.HasField("container"), "container")
        container = _from_wire(request.container)
        return record(1, await self._store.create_record(call.namespace, container))

    async def update(self, call: Call, request: pb.UpdateContainerRequest) -> bytes:
        required(request.HasField("container"), "container")
        namespace = call.namespace
        if not request.container.id:
            raise InvalidArgument("container.id: must not be empty")
        container = _from_wire(request.container)
        changed = paths(request.update_mask)
        return record(1, await self._store.update_record(namespace, container, changed))

    async def delete(self, call: Call, request: pb.DeleteContainerRequest) -> None:
        await self._store.delete(call.namespace, request.id)
