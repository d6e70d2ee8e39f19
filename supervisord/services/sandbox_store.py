"""containerd.services.sandbox.v1.Store: the records of sandboxes.

Replies are copies of the serialized records that the store keeps.
"""

from __future__ import annotations

from protos.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from supervisord.contracts.sandboxes import SandboxStore

from .call import Call
from .sandbox_wire import from_sandbox
from .wire import record, records, required


class SandboxStoreService:
    """Every reply holds the sandbox (or each sandbox) as its field 1."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def create(self, call: Call, request: pb.StoreCreateRequest) -> bytes:
        required(request.HasField("sandbox"), "sandbox")
        namespace = call.namespace
        created = await self._store.create(namespace, from_sandbox(request.sandbox))
        return record(1, self._store.record(namespace, created.id))

    async def update(self, call: Call, request: pb.StoreUpdateRequest) -> bytes:
        required(request.HasField("sandbox"), "sandbox")
        namespace = call.namespace
        sandbox = from_sandbox(request.sandbox)
        updated = await self._store.update(namespace, sandbox, tuple(request.fields))
        return record(1, self._store.record(namespace, updated.id))

    async def delete(self, call: Call, request: pb.StoreDeleteRequest) -> pb.StoreDeleteResponse:
        await self._store.delete(call.namespace, request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def list(self, call: Call, request: pb.StoreListRequest) -> bytes:
        return records(1, self._store.records(call.namespace, tuple(request.filters)))

    async def get(self, call: Call, request: pb.StoreGetRequest) -> bytes:
        return record(1, self._store.record(call.namespace, request.sandbox_id))
