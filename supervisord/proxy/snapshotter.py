"""A snapshotter in another process (``contracts.snapshots.Snapshotter``), over containerd's
snapshots service.

``name`` is what the peer is asked for; most serve one snapshotter and ignore it. The peer is told
the namespace of the request, as containerd tells it: ours is the first part of a key of the
metadata layer (``NAMESPACE/NUMBER/KEY``). A list and a cleanup are of all namespaces and tell
none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.errors import NotFound
from supervisord.contracts.snapshots import Info, Mount, Usage
from supervisord.services.snapshot_wire import from_info, to_info
from supervisord.services.wire import from_mounts

from .channel import Channel, Headers, scope_headers

Answer = TypeVar("Answer", bound=Message)

_SERVICE = pb.DESCRIPTOR.services_by_name["Snapshots"].full_name

QUICK_SECONDS = 30.0
"""For calls that only look something up."""

SECONDS = 600.0
"""For calls that may work: a copy, or a layer from far away."""


class ProxySnapshotter:
    """``namespace`` is told with every call, instead of that in the key. ``channel`` is closed
    with it if it is its ``own``."""

    remote = True

    def __init__(
        self,
        channel: Channel,
        name: str,
        *,
        seconds: float = SECONDS,
        namespace: str = "",
        own: bool = False,
    ) -> None:
        self._channel = channel
        self._name = name
        self._seconds = seconds
        self._quick = min(seconds, QUICK_SECONDS)
        self._namespace = namespace
        self._own = own

    async def stat(self, key: str) -> Info:
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=key)
        answer = await self._call("Stat", key, request, pb.StatSnapshotResponse, self._quick)
        return from_info(answer.info)

    async def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name, info=to_info(info), update_mask=FieldMask(paths=fieldpaths)
        )
        answer = await self._call(
            "Update", info.name, request, pb.UpdateSnapshotResponse, self._quick
        )
        return from_info(answer.info)

    async def usage(self, key: str) -> Usage:
        request = pb.UsageRequest(snapshotter=self._name, key=key)
        answer = await self._call("Usage", key, request, pb.UsageResponse)
        return Usage(answer.size, answer.inodes)

    async def mounts(self, key: str) -> Sequence[Mount]:
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        answer = await self._call("Mounts", key, request, pb.MountsResponse, self._quick)
        return from_mounts(answer.mounts)

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        answer = await self._call("Prepare", key, request, pb.PrepareSnapshotResponse)
        return from_mounts(answer.mounts)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        answer = await self._call("View", key, request, pb.ViewSnapshotResponse)
        return from_mounts(answer.mounts)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name, name=name, key=key, labels=labels, parent=parent
        )
        await self._call("Commit", key, request, Empty)

    async def remove(self, key: str) -> None:
        request = pb.RemoveSnapshotRequest(snapshotter=self._name, key=key)
        await self._call("Remove", key, request, Empty)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        method = f"/{_SERVICE}/List"
        batches = self._channel.stream(
            method, request, pb.ListSnapshotsResponse, self._seconds, self._headers("")
        )
        async with aclosing(batches):
            try:
                async for batch in batches:
                    for info in batch.info:
                        yield from_info(info)
            except NotFound:  # so says a store of containerd's that never had a snapshot
                return

    async def cleanup(self) -> None:
        await self._call("Cleanup", "", pb.CleanupRequest(snapshotter=self._name), Empty)

    async def close(self) -> None:
        """The peer goes on: it may serve others."""
        if self._own:
            await self._channel.close()

    async def _call(
        self, verb: str, key: str, request: Message, answer: type[Answer], seconds: float = 0
    ) -> Answer:
        method = f"/{_SERVICE}/{verb}"
        return await self._channel.unary(
            method, request, answer, seconds or self._seconds, self._headers(key)
        )

    def _headers(self, key: str) -> Headers:
        namespace, slash, _ = key.partition("/")
        return scope_headers(self._namespace or (namespace if slash else ""))
