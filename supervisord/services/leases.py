"""containerd.services.leases.v1: leases and what they hold."""

from __future__ import annotations

from protos.containerd.services.leases.v1 import leases_pb2 as pb
from supervisord.contracts.leases import Lease, LeaseStore, Resource

from .call import Call
from .wire import required, timestamp


def _to_wire(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=lease.labels)


def _resource(request: pb.AddResourceRequest | pb.DeleteResourceRequest) -> Resource:
    required(request.HasField("resource"), "resource")
    return Resource(type=request.resource.type, id=request.resource.id)


class LeasesService:
    """Hands each request to the store, which also runs the collector for a synchronous delete."""

    def __init__(self, store: LeaseStore) -> None:
        self._store = store

    async def create(self, call: Call, request: pb.CreateRequest) -> pb.CreateResponse:
        lease = Lease(request.id, labels=dict(request.labels))
        return pb.CreateResponse(lease=_to_wire(await self._store.create(call.namespace, lease)))

    async def delete(self, call: Call, request: pb.DeleteRequest) -> None:
        await self._store.delete(call.namespace, request.id, sync=request.sync)

    async def list(self, call: Call, request: pb.ListRequest) -> pb.ListResponse:
        leases = self._store.list(call.namespace, request.filters)
        return pb.ListResponse(leases=[_to_wire(lease) for lease in leases])

    async def add_resource(self, call: Call, request: pb.AddResourceRequest) -> None:
        await self._store.add_resource(call.namespace, request.id, _resource(request))

    async def delete_resource(self, call: Call, request: pb.DeleteResourceRequest) -> None:
        await self._store.delete_resource(call.namespace, request.id, _resource(request))

    async def list_resources(
        self, call: Call, request: pb.ListResourcesRequest
    ) -> pb.ListResourcesResponse:
        held = self._store.list_resources(call.namespace, request.id)
        return pb.ListResourcesResponse(
            resources=[pb.Resource(id=resource.id, type=resource.type) for resource in held]
        )
