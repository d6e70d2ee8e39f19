"""containerd.services.namespaces.v1: creating, labelling and removing namespaces.

These calls act on namespaces, not in one, so they need none in their metadata.
"""

from __future__ import annotations

from protos.containerd.services.namespaces.v1 import namespaces_pb2 as pb
from supervisord.contracts.errors import NotFound
from supervisord.contracts.namespaces import Namespace, NamespaceStore

from .call import Call
from .wire import paths, required


def _to_wire(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=namespace.labels)


def _from_wire(namespace: pb.Namespace) -> Namespace:
    return Namespace(namespace.name, dict(namespace.labels))


class NamespacesService:
    """Hands each request to the store. List's filter has no effect in containerd and none here."""

    def __init__(self, store: NamespaceStore) -> None:
        self._store = store

    async def get(self, call: Call, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        """As in containerd, a namespace that is not there has no labels: clients ask for its
        defaults before its first use."""
        try:
            namespace = self._store.get(request.name)
        except NotFound:
            namespace = Namespace(request.name)
        return pb.GetNamespaceResponse(namespace=_to_wire(namespace))

    async def list(
        self, call: Call, request: pb.ListNamespacesRequest
    ) -> pb.ListNamespacesResponse:
        return pb.ListNamespacesResponse(namespaces=[_to_wire(n) for n in self._store.list()])

    async def create(
        self, call: Call, request: pb.CreateNamespaceRequest
    ) -> pb.CreateNamespaceResponse:
        required(request.HasField("namespace"), "namespace")
        created = await self._store.create(_from_wire(request.namespace))
        return pb.CreateNamespaceResponse(namespace=_to_wire(created))

    async def update(
        self, call: Call, request: pb.UpdateNamespaceRequest
    ) -> pb.UpdateNamespaceResponse:
        required(request.HasField("namespace"), "namespace")
        namespace = _from_wire(request.namespace)
        updated = await self._store.update(namespace, paths(request.update_mask))
        return pb.UpdateNamespaceResponse(namespace=_to_wire(updated))

    async def delete(self, call: Call, request: pb.DeleteNamespaceRequest) -> None:
        await self._store.delete(request.name)
