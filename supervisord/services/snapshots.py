"""containerd.services.snapshots.v1: the snapshotters, each under its name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.snapshots import SnapshotService

from .call import Call
from .snapshot_wire import BATCH, from_info, to_info
from .wire import paths, required, to_mounts


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
        return pb.StatSnapshotResponse(info=to_info(info))

    async def update(
        self, call: Call, request: pb.UpdateSnapshotRequest
    ) -> pb.UpdateSnapshotResponse:
        snapshotter = self._named(request.snapshotter)
        required(request.HasField("info"), "info")
        info = await snapshotter.update(
            call.scope, from_info(request.info), paths(request.update_mask)
        )
        return pb.UpdateSnapshotResponse(info=to_info(info))

    async def list(
        self, call: Call, request: pb.ListSnapshotsRequest
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        batch: list[pb.Info] = []
        found = self._named(request.snapshotter).walk(call.scope, tuple(request.filters))
        async for info in found:
            batch.append(to_info(info))
            if len(batch) == BATCH:
                yield pb.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield pb.ListSnapshotsResponse(info=batch)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._named(request.snapshotter).usage(call.scope, request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> None:
        await self._named(request.snapshotter).cleanup(call.scope)
