"""containerd.services.diff.v1: layers applied to mounts, and computed from them."""

from __future__ import annotations

from protos.containerd.services.diff.v1 import diff_pb2 as pb
from supervisord.contracts.diff import ApplyOptions, Differ, DiffOptions
from supervisord.contracts.identifiers import check_digest, check_media_type

from .call import Call
from .wire import from_descriptor, from_mounts, nanoseconds, required, to_descriptor, typed_map


class DiffService:
    """Hands requests to the differ."""

    def __init__(self, differ: Differ, *, sync_fs: bool) -> None:
        self._differ = differ
        self._sync_fs = sync_fs

    async def apply(self, call: Call, request: pb.ApplyRequest) -> pb.ApplyResponse:
        required(request.HasField("diff"), "diff")
        layer = from_descriptor(request.diff)
        check_digest(layer.digest, "diff.digest")
        check_media_type(layer.media_type, "diff.media_type")
        mounts = from_mounts(request.mounts)
        options = ApplyOptions(typed_map(request.payloads), request.sync_fs or self._sync_fs)
        applied = await self._differ.apply(call.scope, layer, mounts, options)
        return pb.ApplyResponse(applied=to_descriptor(applied))

    async def diff(self, call: Call, request: pb.DiffRequest) -> pb.DiffResponse:
        epoch = None
        if request.HasField("source_date_epoch"):
            epoch = nanoseconds(request.source_date_epoch) // 1_000_000_000
        options = DiffOptions(request.media_type, request.ref, dict(request.labels), epoch)
        if options.media_type:
            check_media_type(options.media_type, "media_type")
        lower, upper = from_mounts(request.left), from_mounts(request.right)
        layer = await self._differ.diff(call.scope, lower, upper, options)
        return pb.DiffResponse(diff=to_descriptor(layer))
