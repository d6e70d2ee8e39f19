"""What garbage collection keeps and takes, over gRPC: labels, leases, images, containers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import grpc
import pytest

from protos.containerd.services.containers.v1 import containers_pb2 as co
from protos.containerd.services.content.v1 import content_pb2 as ct
from protos.containerd.services.images.v1 import images_pb2 as im
from protos.containerd.services.leases.v1 import leases_pb2 as le
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as sn
from tests.conformance.wire import RUNTIME, SPEC_URL, Wire

GC = "containerd.io/gc."
ROOT = {GC + "root": "1"}
SNAPSHOTTER = "overlayfs"
_OURS = "the reference is older than the label"


class Heap:
    """Makes things, all of them roots at first, and tells what a collection leaves."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def blob(self, data: str, labels: Mapping[str, str] | None = None, lease: str = "") -> str:
        digest = f"sha256:{sha256(data.encode()).hexdigest()}"
        request = ct.WriteContentRequest(
            action=ct.COMMIT,
            ref=f"ref-{data}",
            data=data.encode(),
            expected=digest,
            total=len(data),
            labels={**(labels or {}), **ROOT},
        )
        wire = self.wire.scoped(lease=lease)
        try:
            list(wire.content.Write(iter([request])))
        finally:
            wire.close()
        return digest

    def snapshot(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> str:
        """A committed one."""
        made: dict[str, Any] = {"snapshotter": SNAPSHOTTER, "labels": {**(labels or {}), **ROOT}}
        self.wire.snapshots.Prepare(
            sn.PrepareSnapshotRequest(key=f"{key}-work", parent=parent, **made)
        )
        self.wire.snapshots.Commit(sn.CommitSnapshotRequest(key=f"{key}-work", name=key, **made))
        return key

    def lease(self, id: str, *held: tuple[str, str], **labels: str) -> None:
        labels = {GC + name: value for name, value in labels.items()}
        self.wire.leases.Create(le.CreateRequest(id=id, labels=labels))
        for type, resource in held:
            self.wire.leases.AddResource(
                le.AddResourceRequest(id=id, resource=le.Resource(type=type, id=resource))
            )

    def image(self, name: str, digest: str, labels: Mapping[str, str] | None = None) -> None:
        image = im.Image(name=name, labels=labels)
        image.target.media_type, image.target.digest, image.target.size = "text/plain", digest, 1
        self.wire.images.Create(im.CreateImageRequest(image=image))

    def container(self, id: str, labels: Mapping[str, str], key: str = "") -> None:
        container = co.Container(id=id, labels=labels)
        container.runtime.name, container.spec.type_url = RUNTIME, SPEC_URL
        container.spec.value = b"{}"
        if key:
            container.snapshotter, container.snapshot_key = SNAPSHOTTER, key
        self.wire.containers.Create(co.CreateContainerRequest(container=container))

    def let_go(self, *things: str) -> None:
        """These blobs and snapshots are roots no more."""
        for thing in things:
            mask: dict[str, Any] = {"update_mask": {"paths": [f"labels.{GC}root"]}}
            if thing.startswith("sha256:"):
                self.wire.content.Update(ct.UpdateRequest(info=ct.Info(digest=thing), **mask))
            else:
                info = sn.Info(name=thing)
                request = sn.UpdateSnapshotRequest(snapshotter=SNAPSHOTTER, info=info, **mask)
                self.wire.snapshots.Update(request)

    def left(self) -> set[str]:
        """The blobs, snapshots and images that are there after a collection."""
        id = f"collect-{time.monotonic_ns()}"
        self.wire.leases.Create(le.CreateRequest(id=id))
        self.wire.leases.Delete(le.DeleteRequest(id=id, sync=True))
        found = {i.digest for part in self.wire.content.List(ct.ListContentRequest())
                 for i in part.info}  # fmt: skip
        listing = sn.ListSnapshotsRequest(snapshotter=SNAPSHOTTER)
        found |= {i.name for part in self.wire.snapshots.List(listing) for i in part.info}
        return found | {i.name for i in self.wire.images.List(im.ListImagesRequest()).images}


@pytest.fixture
def heap(wire: Wire) -> Heap:
    return Heap(wire)


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("ref.content", True),
        ("ref.content.config", True),
        ("ref.content.l.0", True),
        ("ref.contents", False),
        ("ref.content-1", False),
    ],
)
def test_labels_that_name_content(heap: Heap, label: str, kept: bool) -> None:
    blob = heap.blob("blob")
    by_blob = heap.blob("by blob", {GC + label: blob})
    heap.let_go(blob)
    assert heap.left() == {by_blob} | ({blob} if kept else set())


def test_everything_can_name_content_and_snapshots(heap: Heap) -> None:
    names = ("blob", "snapshot", "image", "container")
    blobs = {name: heap.blob(name) for name in names}
    snapshots = {name: heap.snapshot(f"of-{name}") for name in names}
    labels = {
        name: {
            GC + "ref.content.x": blobs[name],
            f"{GC}ref.snapshot.{SNAPSHOTTER}": snapshots[name],
        }
        for name in names
    }
    roots = {heap.blob("root", labels["blob"]), heap.snapshot("root", labels=labels["snapshot"])}
    target = heap.blob("target")
    heap.image("image", target, labels["image"])
    heap.container("container", labels["container"])
    heap.let_go(*blobs.values(), *snapshots.values(), target)
    kept = {*blobs.values(), *snapshots.values(), *roots, target, "image"}
    assert heap.left() == kept
    heap.wire.images.Delete(im.DeleteImageRequest(name="image", sync=True))
    kept -= {"image", target, blobs["image"], snapshots["image"]}
    assert heap.left() == kept
    heap.wire.containers.Delete(co.DeleteContainerRequest(id="container"))
    kept -= {blobs["container"], snapshots["container"]}
    assert heap.left() == kept
    heap.let_go(*roots)
    assert heap.left() == set()


def test_several_names_of_one_snapshotter(heap: Heap) -> None:
    one, two = heap.snapshot("one"), heap.snapshot("two")
    prefix = f"{GC}ref.snapshot.{SNAPSHOTTER}"
    root = heap.blob("root", {f"{prefix}/first": one, f"{prefix}/second": two})
    other = heap.blob("other", {f"{GC}ref.snapshot.native": "three"})
    three = heap.snapshot("three")
    heap.let_go(one, two, three)
    assert heap.left() == {root, other, one, two}


def test_a_container_keeps_its_snapshot_with_parents(heap: Heap) -> None:
    bottom, top = heap.snapshot("bottom"), heap.snapshot("top", "bottom")
    heap.container("c", {}, top)
    heap.let_go(bottom, top)
    assert heap.left() == {bottom, top}
    heap.wire.containers.Delete(co.DeleteContainerRequest(id="c"))
    assert heap.left() == set()


def test_a_lease_keeps_what_it_holds_and_what_that_names(heap: Heap) -> None:
    layer, bottom = heap.blob("layer"), heap.snapshot("bottom")
    manifest = heap.blob("manifest", {GC + "ref.content": layer})
    snapshot = f"snapshots/{SNAPSHOTTER}"
    top = heap.snapshot("top", "bottom", {GC + "ref.content": layer})
    heap.let_go(layer, manifest, bottom, top)
    heap.lease("deep", ("content", manifest), (snapshot, top))
    assert heap.left() == {layer, manifest, bottom, top}
    heap.lease("flat", ("content", manifest), (snapshot, top), flat="1")
    heap.wire.leases.Delete(le.DeleteRequest(id="deep"))
    assert heap.left() == {manifest, bottom, top}
    heap.wire.leases.DeleteResource(
        le.DeleteResourceRequest(id="flat", resource=le.Resource(type=snapshot, id=top))
    )
    assert heap.left() == {manifest}
    heap.wire.leases.Delete(le.DeleteRequest(id="flat", sync=True))
    assert heap.left() == set()


def test_leases_end(heap: Heap) -> None:
    ended, running, odd = heap.blob("ended"), heap.blob("running"), heap.blob("odd")
    heap.let_go(ended, running, odd)
    soon = datetime.fromtimestamp(time.time() + 600, UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    heap.lease("ended", ("content", ended), expire="2020-02-02T02:02:02Z")
    heap.lease("running", ("content", running), expire=soon)
    heap.lease("odd", ("content", odd), expire="tomorrow")
    assert heap.left() == {running, odd}
    leases = {lease.id for lease in heap.wire.leases.List(le.ListRequest()).leases}
    assert leases == {"running", "odd"}


def test_a_commit_under_a_lease_takes_what_is_there(heap: Heap) -> None:
    """A second writer of a blob hears that it exists, and its lease holds it."""
    heap.lease("l")
    blob = heap.blob("blob")
    with pytest.raises(grpc.RpcError) as caught:
        heap.blob("blob", lease="l")
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    heap.let_go(blob)
    assert heap.left() == {blob}
    heap.wire.leases.Delete(le.DeleteRequest(id="l", sync=True))
    assert heap.left() == set()


def test_a_lease_holds_the_snapshot_that_was_there_already(heap: Heap) -> None:
    heap.lease("l")
    request = sn.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key="k", labels=ROOT)
    heap.wire.snapshots.Prepare(request)
    leased = heap.wire.scoped(lease="l")
    with leased.refused(grpc.StatusCode.ALREADY_EXISTS, "k"):
        leased.snapshots.Prepare(request)
    leased.close()
    heap.let_go("k")
    held = heap.wire.leases.ListResources(le.ListResourcesRequest(id="l")).resources
    if held or heap.wire.ours:  # the reference forgot it, later ones do not
        assert heap.left() == {"k"}


def test_namespaces_keep_their_own_things(heap: Heap) -> None:
    blob = heap.blob("blob")
    heap.container("c", {GC + "ref.content": blob})
    name = f"{heap.wire.namespace}-2"
    other = Heap(heap.wire.scoped(namespace=name))
    try:
        assert other.blob("blob") == blob
        other.let_go(blob)
        assert other.left() == set()
        heap.let_go(blob)
        assert heap.left() == {blob}
    finally:
        from protos.containerd.services.namespaces.v1 import namespaces_pb2

        other.wire.namespaces.Delete(namespaces_pb2.DeleteNamespaceRequest(name=name))
        other.wire.close()


@pytest.mark.only("supervisord", reason=_OURS)
def test_back_references_and_images_that_end(heap: Heap) -> None:
    blob = heap.blob("blob", {GC + "bref.container": "c"})
    snapshot = heap.snapshot("s", labels={GC + "bref.image.x": "i"})
    target = heap.blob("target")
    heap.container("c", {GC + "ref.image": "i"})
    heap.image("i", target, {GC + "expire": "2020-02-02T02:02:02Z"})
    heap.let_go(blob, snapshot, target)
    assert heap.left() == {blob, snapshot, target, "i"}
    heap.wire.containers.Delete(co.DeleteContainerRequest(id="c"))
    assert heap.left() == set()


@pytest.mark.only("supervisord", reason=_OURS)
def test_a_snapshot_that_was_used_lately(heap: Heap) -> None:
    label = f"{GC}cond.snapshot.{SNAPSHOTTER}"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    used = heap.snapshot("used", labels={GC + "cond.value-usedat": now})
    idle = heap.snapshot("idle", labels={GC + "cond.value-usedat": "2020-02-02T02:02:02Z"})
    root = heap.blob("root", {f"{label}/1": "usedat<1h|used", f"{label}/2": "usedat<1h|idle"})
    heap.let_go(used, idle)
    assert heap.left() == {root, used}
