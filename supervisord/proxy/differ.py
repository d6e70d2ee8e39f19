"""A differ in another process (``contracts.diff.Differ``), over containerd's diff service.

It reads layers from, and writes them to, the content store of whoever it takes for its daemon, so
it is told the namespace and the lease of the request.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.services.diff.v1 import diff_pb2 as pb
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.services.wire import from_descriptor, to_descriptor, to_mounts

from .channel import Channel, scope_headers

_SERVICE = pb.DESCRIPTOR.services_by_name["Diff"].full_name


class ProxyDiffer:
    """``seconds`` is how long one layer may take."""

    def __init__(self, channel: Channel, *, seconds: float) -> None:
        self._channel = channel
        self._seconds = seconds

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        request = pb.ApplyRequest(
            diff=to_descriptor(descriptor),
            mounts=to_mounts(mounts),
            payloads={
                id: Any(type_url=payload.type_url, value=payload.value)
                for id, payload in options.payloads.items()
            },
            sync_fs=options.sync_fs,
        )
        headers = scope_headers(scope.namespace, scope.lease)
        answer = await self._channel.unary(
            f"/{_SERVICE}/Apply", request, pb.ApplyResponse, self._seconds, headers
        )
        return from_descriptor(answer.applied)

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        request = pb.DiffRequest(
            left=to_mounts(lower),
            right=to_mounts(upper),
            media_type=options.media_type,
            ref=options.ref,
            labels=options.labels,
        )
        if options.source_date_epoch is not None:
            request.source_date_epoch.CopyFrom(Timestamp(seconds=options.source_date_epoch))
        headers = scope_headers(scope.namespace, scope.lease)
        answer = await self._channel.unary(
            f"/{_SERVICE}/Diff", request, pb.DiffResponse, self._seconds, headers
        )
        return from_descriptor(answer.diff)
