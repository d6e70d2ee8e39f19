"""containerd.services.snapshots.v1 over one snapshotter, as containerd asks a proxy plugin.

The caller has namespaces and labels for collection; the plugin has neither, so nothing of them is
asked for here. Nor is the name of the snapshotter: there is only one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.snapshots import Snapshotter
from supervisord.services.call import Call
from supervisord.services.snapshot_wire import BATCH, from_info, to_info
from supervisord.services.wire import paths, required, to_mounts


class ProxyService:
    """Hands each request to the snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    async def prepare(
        self, call: Call, request: pb.PrepareSnapshotRequest
    ) -> pb.PrepareSnapshotResponse:
        mounts = await self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=to_mounts(mounts))

    async def view(self, call: Call, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mounts = await self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=to_mounts(mounts))

    async def mounts(self, call: Call, request: pb.MountsRequest) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=to_mounts(await self._snapshotter.mounts(request.key)))

    async def commit(self, call: Call, request: pb.CommitSnapshotRequest) -> None:
        labels = dict(request.labels)
        if request.parent:
            await self._snapshotter.commit(request.name, request.key, labels, request.parent)
        else:
            await self._snapshotter.commit(request.name, request.key, labels)

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> None:
        await self._snapshotter.remove(request.key)

    async def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=to_info(await self._snapshotter.stat(request.key)))

    async def update(
        self, call: Call, request: pb.UpdateSnapshotRequest
    ) -> pb.UpdateSnapshotResponse:
        required(request.HasField("info"), "info")
        info = await self._snapshotter.update(from_info(request.info), paths(request.update_mask))
        return pb.UpdateSnapshotResponse(info=to_info(info))

    async def list(
        self, call: Call, request: pb.ListSnapshotsRequest
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        batch: list[pb.Info] = []
        async for info in self._snapshotter.walk(tuple(request.filters)):
            batch.append(to_info(info))
            if len(batch) == BATCH:
                yield pb.ListSnapshotsResponse(info=batch)
                batch = []
        if batch:
            yield pb.ListSnapshotsResponse(info=batch)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._snapshotter.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> None:
        await self._snapshotter.cleanup()
