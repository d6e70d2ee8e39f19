"""Empties a namespace through the API, as a careful client would.

It runs after every test, on both daemons, so it is a test in itself: a namespace that cannot be
emptied and removed fails the test that left it so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import grpc

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.namespaces.v1 import namespaces_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2

from .daemons import remove_cgroups
from .wire import Wire

SNAPSHOTTERS = ("overlayfs", "native")


@contextlib.contextmanager
def absent_is_fine() -> Iterator[None]:
    """Swallows NOT_FOUND: somebody else removed it first."""
    try:
        yield
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


def tasks(wire: Wire, keep: frozenset[str] = frozenset()) -> None:
    """Kills and deletes every task."""
    for id in set(wire.tasks_by_id()) - keep:
        with absent_is_fine():
            wire.kill(id, 9, all=True)
        with absent_is_fine():
            wire.wait(id)
        with absent_is_fine():
            wire.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=id))


def containers(wire: Wire, keep: frozenset[str] = frozenset()) -> None:
    """Deletes every container record."""
    for record in wire.containers.List(containers_pb2.ListContainersRequest()).containers:
        if record.id not in keep:
            with absent_is_fine():
                wire.containers.Delete(containers_pb2.DeleteContainerRequest(id=record.id))


def names(wire: Wire, snapshotter: str) -> dict[str, str]:
    """Every snapshot of the namespace: parents by name."""
    answer = wire.snapshots.List(snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter))
    return {info.name: info.parent for batch in answer for info in batch.info}


def snapshots(wire: Wire, keep: frozenset[str] = frozenset()) -> None:
    """Removes every snapshot, children first.

    A list of containerd's may miss a child for a moment after its restart, so it may say more
    than once that there is one."""
    for snapshotter in SNAPSHOTTERS:
        deadline = time.monotonic() + 5
        while left := {k: v for k, v in names(wire, snapshotter).items() if k not in keep}:
            try:
                _remove(wire, snapshotter, left)
            except grpc.RpcError as error:
                late = error.code() is grpc.StatusCode.FAILED_PRECONDITION and not wire.ours
                if not late or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            assert time.monotonic() < deadline, f"snapshots that stay: {sorted(left)}"


def _remove(wire: Wire, snapshotter: str, left: dict[str, str]) -> None:
    while left:
        for name in set(left) - set(left.values()):
            with absent_is_fine():
                wire.snapshots.Remove(
                    snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=name)
                )
            del left[name]


def records(wire: Wire) -> None:
    """Deletes images, leases, ingests and blobs."""
    for image in wire.images.List(images_pb2.ListImagesRequest()).images:
        with absent_is_fine():
            wire.images.Delete(images_pb2.DeleteImageRequest(name=image.name))
    for lease in wire.leases.List(leases_pb2.ListRequest()).leases:
        with absent_is_fine():
            wire.leases.Delete(leases_pb2.DeleteRequest(id=lease.id))
    statuses = wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses
    for status in statuses:
        _abort(wire, status.ref)
    for batch in wire.content.List(content_pb2.ListContentRequest()):
        for info in batch.info:
            with absent_is_fine():
                wire.content.Delete(content_pb2.DeleteContentRequest(digest=info.digest))


def _abort(wire: Wire, ref: str, seconds: float = 3) -> None:
    """Drops an ingest, as soon as a writer whose client went away has let go of it."""
    deadline = time.monotonic() + seconds
    busy = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)  # UNKNOWN: containerd's
    while True:
        try:
            with absent_is_fine():
                wire.content.Abort(content_pb2.AbortRequest(ref=ref))
            return
        except grpc.RpcError as error:
            if error.code() not in busy or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def namespace(wire: Wire) -> None:
    """Empties the namespace and removes it, with its cgroups."""
    tasks(wire)
    containers(wire)
    records(wire)
    snapshots(wire)
    with absent_is_fine():
        wire.namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=wire.namespace))
    deadline = time.monotonic() + 5
    remove_cgroups(f"/{wire.namespace}")
    assert time.monotonic() < deadline, "the namespace's cgroups could not be removed in time"
