"""A client of storage: one method per verb, for tests that break things underneath."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from protos.containerd.services.content.v1 import content_pb2 as content
from protos.containerd.services.diff.v1 import diff_pb2 as diff
from protos.containerd.services.images.v1 import images_pb2 as images
from protos.containerd.services.leases.v1 import leases_pb2 as leases
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from protos.containerd.types import types_pb2
from tests.conformance.wire import Wire

LAYER = "application/vnd.oci.image.layer.v1.tar"
ROOT = {"containerd.io/gc.root": "1"}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str = LAYER) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


class Stored:
    """The verbs over one connection."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    # Content -------------------------------------------------------------------------------

    def write(
        self,
        ref: str,
        data: bytes,
        labels: dict[str, str] | None = None,
        *,
        commit: bool = True,
        pieces: int = 2,
    ) -> str:
        """Writes a blob from where its ingest is; answers its digest."""

        def requests() -> Iterator[content.WriteContentRequest]:
            yield content.WriteContentRequest(action=content.WriteAction.STAT, ref=ref)
            at = started.get("offset", 0)
            step = max(1, -(-len(data) // pieces))
            while at < len(data):
                piece = data[at : at + step]
                yield content.WriteContentRequest(
                    action=content.WriteAction.WRITE, ref=ref, offset=at, data=piece
                )
                at += len(piece)
            if commit:
                yield content.WriteContentRequest(
                    action=content.WriteAction.COMMIT, ref=ref, offset=len(data),
                    total=len(data), expected=digest_of(data), labels=labels or ROOT,
                )  # fmt: skip

        # In step: each request waits for the answer to the one before, whose offset may matter.
        started: dict[str, int] = {}
        self._converse(requests(), started)
        return digest_of(data)

    def _converse(self, requests: Iterator[Any], started: dict[str, int]) -> None:
        import queue

        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        first = next(requests)
        waiting.put(first)
        answers = self.wire.content.Write(iter(waiting.get, None))
        try:
            for answer in answers:
                started.setdefault("offset", answer.offset)
                waiting.put(next(requests, None))
        finally:
            waiting.put(None)

    def abort(self, ref: str) -> None:
        self.wire.content.Abort(content.AbortRequest(ref=ref))

    def delete_blob(self, digest: str) -> None:
        self.wire.content.Delete(content.DeleteContentRequest(digest=digest))

    def read(self, digest: str) -> bytes:
        answers = self.wire.content.Read(content.ReadContentRequest(digest=digest))
        return b"".join(answer.data for answer in answers)

    def blobs(self) -> set[str]:
        answers = self.wire.content.List(content.ListContentRequest())
        return {info.digest for answer in answers for info in answer.info}

    def refs(self) -> set[str]:
        answer = self.wire.content.ListStatuses(content.ListStatusesRequest())
        return {status.ref for status in answer.statuses}

    # Images and leases -----------------------------------------------------------------------

    def image(self, name: str, data: bytes, labels: dict[str, str] | None = None) -> None:
        image = images.Image(name=name, labels=labels or {}, target=descriptor(data))
        self.wire.images.Create(images.CreateImageRequest(image=image))

    def delete_image(self, name: str, *, sync: bool = False) -> None:
        self.wire.images.Delete(images.DeleteImageRequest(name=name, sync=sync))

    def images(self) -> set[str]:
        return {image.name for image in self.wire.images.List(images.ListImagesRequest()).images}

    def lease(self, id: str) -> None:
        self.wire.leases.Create(leases.CreateRequest(id=id))

    def delete_lease(self, id: str, *, sync: bool = True) -> None:
        self.wire.leases.Delete(leases.DeleteRequest(id=id, sync=sync))

    def collect(self) -> None:
        """One garbage collection."""
        lease = self.wire.leases.Create(leases.CreateRequest()).lease.id
        self.delete_lease(lease)

    # Snapshots -------------------------------------------------------------------------------

    def prepare(
        self, snapshotter: str, key: str, parent: str = "", labels: dict[str, str] | None = None
    ) -> Any:
        request = snapshots.PrepareSnapshotRequest(
            snapshotter=snapshotter,
            key=key,
            parent=parent,
            labels=ROOT if labels is None else labels,
        )
        return self.wire.snapshots.Prepare(request).mounts

    def view(self, snapshotter: str, key: str, parent: str = "") -> Any:
        request = snapshots.ViewSnapshotRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=ROOT
        )
        return self.wire.snapshots.View(request).mounts

    def mounts(self, snapshotter: str, key: str) -> Any:
        request = snapshots.MountsRequest(snapshotter=snapshotter, key=key)
        return self.wire.snapshots.Mounts(request).mounts

    def commit(
        self, snapshotter: str, name: str, key: str, labels: dict[str, str] | None = None
    ) -> None:
        self.wire.snapshots.Commit(
            snapshots.CommitSnapshotRequest(
                snapshotter=snapshotter,
                name=name,
                key=key,
                labels=ROOT if labels is None else labels,
            )
        )

    def remove(self, snapshotter: str, key: str) -> None:
        self.wire.snapshots.Remove(
            snapshots.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        )

    def snapshots(self, snapshotter: str) -> set[str]:
        answers = self.wire.snapshots.List(snapshots.ListSnapshotsRequest(snapshotter=snapshotter))
        return {info.name for answer in answers for info in answer.info}

    # Layers ----------------------------------------------------------------------------------

    def apply(self, layer: bytes, mounts: Any) -> str:
        request = diff.ApplyRequest(diff=descriptor(layer), mounts=mounts)
        return str(self.wire.diff.Apply(request).applied.digest)

    def diff(self, lower: Any, upper: Any, ref: str) -> str:
        request = diff.DiffRequest(left=lower, right=upper, ref=ref, media_type=LAYER, labels=ROOT)
        return str(self.wire.diff.Diff(request).diff.digest)


def refused(call: Callable[[], Any], code: grpc.StatusCode) -> bool:
    """Whether the call is refused with that code; any other refusal is raised."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is not code:
            raise
        return True
    return False
