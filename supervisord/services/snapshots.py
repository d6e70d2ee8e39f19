"""containerd.services.snapshots.v1: the snapshotters, each under its name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.snapshots import Info, Kind, SnapshotService

from .call import Call
from .wire import nanoseconds, paths, required, timestamp, to_mounts

_BATCH = 100
_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


def _to_wire(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=pb.Kind.ValueType(int(info.kind)),
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _from_wire(info: pb.Info) -> Info:
    return Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS.get(info.kind, Kind.UNKNOWN),
        created_at=nanoseconds(info.created_at),
        updated_at=nanoseconds(info.updated_at),
        labels=dict(info.labels),
    )


class SnapshotsService:
    """Picks the snapshotter that the request names, and hands the request on."""

    def __init__(self, snapshotters: Mapping[str, SnapshotService]) -> None:
        self._snapshotters = snapshotters

    def _named(self, name: str) -> SnapshotService:
        if not name:
            raise InvalidArgument("snapshotter argument missing: invalid argument")
        found = self._snapshotters.get(name)
        if found is None:
            raise InvalidArgument(f"snapshotter not loaded: {name}: invalid argument")
        return found

    async def prepare(
        self, call: Call, request: pb.PrepareSnapshotRequest
    ) -> pb.PrepareSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        mounts = await snapshotter.prepare(
            call.scope, request.key, request.parent, dict(request.labels)
        )
        return pb.PrepareSnapshotResponse(mounts=to_mounts(mounts))

    async def view(self, call: Call, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        mounts = await snapshotter.view(
            call.scope, request.key, request.parent, dict(request.labels)
        )
        return pb.ViewSnapshotResponse(mounts=to_mounts(mounts))

    async def mounts(self, call: Call, request: pb.MountsRequest) -> pb.MountsResponse:
        mounts = await self._named(request.snapshotter).mounts(call.scope, request.key)
        return pb.MountsResponse(mounts=to_mounts(mounts))

    async def commit(self, call: Call, request: pb.CommitSnapshotRequest) -> None:
        snapshotter = self._named(request.snapshotter)
        await snapshotter.commit(
            call.scope, request.name, request.key, dict(request.labels), request.parent
        )

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> None:
        await self._named(request.snapshotter).remove(call.scope, request.key)

    async def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        info = await self._named(request.snapshotter).stat(call.scope, request.key)
        return pb.StatSnapshotResponse(info=_to_wire(info))

    async def update(
        self, call: Call, request: pb.UpdateSnapshotRequest
    ) -> pb.UpdateSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        required(request.HasField("info"), "info")
        info = await snapshotter.update(
            call.scope, _from_wire(request.info), paths(request.update_mask)
        )
        return pb.UpdateSnapshotResponse(info=_to_wire(info))

    async def list(
        self, call: Call, request: pb.ListSnapshotsRequest
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        batch: list[pb.Info] = []
        found = self._named(request.snapshotter).walk(call.scope, tuple(request.filters))
        async for info in found:
            batch.append(_to_wire(info))
            if len(batch) == _BATCH:
                yield pb.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield pb.ListSnapshotsResponse(info=batch)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._named(request.snapshotter).usage(call.scope, request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> None:
        await self._named(request.snapshotter).cleanup(call.scope)
