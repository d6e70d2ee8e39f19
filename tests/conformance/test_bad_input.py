"""Malformed input: INVALID_ARGUMENT, a message that names the field, and nothing left behind.

The table runs against Debian's containerd too. Where its answer is poorer (UNKNOWN, or nothing
said about the field) the row says so in ``reference``; None there means that it accepts the input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.containers.v1 import containers_pb2 as c
from protos.containerd.services.content.v1 import content_pb2 as ct
from protos.containerd.services.diff.v1 import diff_pb2 as d
from protos.containerd.services.events.v1 import events_pb2 as e
from protos.containerd.services.images.v1 import images_pb2 as i
from protos.containerd.services.leases.v1 import leases_pb2 as le
from protos.containerd.services.namespaces.v1 import namespaces_pb2 as n
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as s
from protos.containerd.services.tasks.v1 import tasks_pb2 as t
from protos.containerd.types import types_pb2

from . import sweep
from .daemons import Daemon
from .fixtures import Shop
from .ocitar import LAYER, MANIFEST, sha256
from .test_rpc_records import container
from .wire import Wire

Code = grpc.StatusCode
INVALID = Code.INVALID_ARGUMENT
LONG = "x" * 77
HUGE = {"key": "v" * 4096}
GOOD = sha256(b"good")
DEEP = b'{"process": {}, "annotations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@dataclass(frozen=True)
class Row:
    """One malformed request: what it is, the field its refusal must name, containerd's code."""

    name: str
    call: Callable[[Wire], Any]
    field: str
    reference: grpc.StatusCode | None = INVALID


def create_container(**more: Any) -> Callable[[Wire], Any]:
    """A Create of a container with something wrong."""

    def call(wire: Wire) -> Any:
        fields = {"id": "good", **more}
        labels = fields.pop("labels", {})
        record = container(**fields)
        record.labels.update(labels)
        return wire.containers.Create(c.CreateContainerRequest(container=record))

    return call


def create_image(**target: Any) -> Callable[[Wire], Any]:
    """A Create of an image with something wrong."""

    def call(wire: Wire) -> Any:
        good = {"name": "good", "labels": {}, "media_type": MANIFEST, "digest": GOOD, "size": 4}
        fields: dict[str, Any] = {**good, **target}
        name, labels = fields.pop("name"), fields.pop("labels")
        descriptor = types_pb2.Descriptor(**fields)
        record = i.Image(name=name, labels=labels, target=descriptor)
        return wire.images.Create(i.CreateImageRequest(image=record))

    return call


def namespace(name: str, **labels: str) -> Callable[[Wire], Any]:
    """A Create of a namespace."""
    record = n.Namespace(name=name, labels=labels)
    return lambda wire: wire.namespaces.Create(n.CreateNamespaceRequest(namespace=record))


def within(name: str) -> Callable[[Wire], Any]:
    """A call with this namespace in its metadata."""

    def call(wire: Wire) -> Any:
        other = wire.scoped(name)
        try:
            return other.containers.List(c.ListContainersRequest())
        finally:
            other.close()

    return call


def write(**fields: Any) -> Callable[[Wire], Any]:
    """A Write of one commit."""
    request = ct.WriteContentRequest(action=ct.COMMIT, **{"ref": "r", "data": b"good", **fields})
    return lambda wire: list(wire.content.Write(iter([request])))


def prepare(**fields: Any) -> Callable[[Wire], Any]:
    """A Prepare of a snapshot."""
    request = s.PrepareSnapshotRequest(**{"snapshotter": "overlayfs", "key": "k", **fields})
    return lambda wire: wire.snapshots.Prepare(request)


def apply(**fields: Any) -> Callable[[Wire], Any]:
    """An Apply of a layer that is in the store."""

    def call(wire: Wire) -> Any:
        write(labels={"containerd.io/gc.root": "x"})(wire)
        good = {"media_type": LAYER, "digest": GOOD, "size": 4}
        nowhere = types_pb2.Mount(type="bind", source="/no/such/folder", options=["rbind"])
        mounts = fields.get("mounts", [nowhere])
        descriptor = types_pb2.Descriptor(**{**good, **fields.get("diff", {})})
        return wire.diff.Apply(d.ApplyRequest(diff=descriptor, mounts=mounts))

    return call


def publish(topic: str) -> Callable[[Wire], Any]:
    """A Publish."""
    request = e.PublishRequest(topic=topic)
    request.event.type_url = "x"
    return lambda wire: wire.events.Publish(request)


def listing(filter: str) -> list[Row]:
    """Every List with the same malformed filter."""
    unknown = Code.UNKNOWN
    lists: list[tuple[str, Callable[[Wire], Any], grpc.StatusCode]] = [
        (
            "containers",
            lambda w: w.containers.List(c.ListContainersRequest(filters=[filter])),
            INVALID,
        ),
        ("images", lambda w: w.images.List(i.ListImagesRequest(filters=[filter])), INVALID),
        (
            "content",
            lambda w: list(w.content.List(ct.ListContentRequest(filters=[filter]))),
            INVALID,
        ),
        (
            "statuses",
            lambda w: w.content.ListStatuses(ct.ListStatusesRequest(filters=[filter])),
            INVALID,
        ),
        ("leases", lambda w: w.leases.List(le.ListRequest(filters=[filter])), INVALID),
        (
            "snapshots",
            lambda w: list(
                w.snapshots.List(s.ListSnapshotsRequest(snapshotter="overlayfs", filters=[filter]))
            ),
            unknown,
        ),
        ("metrics", lambda w: w.tasks.Metrics(t.MetricsRequest(filters=[filter])), unknown),
    ]
    return [Row(f"{name} filter {filter}", call, "filter", code) for name, call, code in lists]


ROWS = [
    Row("container id empty", create_container(id=""), "id"),
    Row("container id with slash", create_container(id="a/b"), "id"),
    Row("container id with dots", create_container(id=".."), "id"),
    Row("container id with space", create_container(id="a b"), "id"),
    Row("container id too long", create_container(id=LONG), "id"),
    Row("container label too long", create_container(labels=HUGE), "label"),
    Row(
        "container without message",
        lambda w: w.containers.Create(c.CreateContainerRequest()),
        "container",
        None,
    ),
    Row("image name empty", create_image(name=""), "name"),
    Row("image digest malformed", create_image(digest="sha256:x"), "digest"),
    Row("image digest algorithm", create_image(digest="crc:00"), "digest"),
    Row("image digest upper case", create_image(digest="sha256:" + "A" * 64), "digest"),
    Row("image size negative", create_image(size=-1), "size"),
    Row("image media type empty", create_image(media_type=""), "media"),
    Row("image label too long", create_image(labels=HUGE), "label"),
    Row("namespace empty", namespace(""), "namespace"),
    Row("namespace with slash", namespace("a/b"), "namespace"),
    Row("namespace too long", namespace(LONG), "namespace"),
    Row("namespace label too long", namespace("good", key="v" * 4096), "label"),
    Row("namespace of the call with space", within("a b"), "namespace"),
    Row("namespace of the call too long", within(LONG), "namespace"),
    Row("namespace of the call leads out", within("../x"), "namespace"),
    Row("content info digest", lambda w: w.content.Info(ct.InfoRequest(digest="nope")), "digest"),
    Row(
        "content read digest",
        lambda w: list(w.content.Read(ct.ReadContentRequest(digest="../x"))),
        "digest",
    ),
    Row(
        "content delete digest",
        lambda w: w.content.Delete(ct.DeleteContentRequest(digest="x:y")),
        "digest",
    ),
    Row(
        "content update digest",
        lambda w: w.content.Update(
            ct.UpdateRequest(info=ct.Info(digest="x"), update_mask=FieldMask(paths=["labels"]))
        ),
        "digest",
    ),
    Row("content write ref empty", write(ref=""), "ref"),
    Row(
        "content write expected", write(expected="sha256:12"), "expected", Code.FAILED_PRECONDITION
    ),
    Row("content write label too long", write(labels=HUGE), "label"),
    Row(
        "lease label too long",
        lambda w: w.leases.Create(le.CreateRequest(id="good", labels=HUGE)),
        "label",
        None,
    ),
    Row("snapshot label too long", prepare(labels=HUGE), "label"),
    Row("snapshotter unknown", prepare(snapshotter="nosuch"), "snapshotter"),
    Row("snapshotter empty", prepare(snapshotter=""), "snapshotter"),
    Row("snapshot key empty", prepare(key=""), "key", None),
    Row("diff media type", apply(diff={"media_type": "not a type"}), "media", Code.UNKNOWN),
    Row("diff digest", apply(diff={"digest": "nope"}), "digest", Code.NOT_FOUND),
    Row(
        "diff mount type",
        apply(mounts=[types_pb2.Mount(type="nosuchfs", source="/x", options=["rw"])]),
        "mount",
        Code.UNKNOWN,
    ),
    Row(
        "diff mount option",
        apply(
            mounts=[
                types_pb2.Mount(
                    type="bind", source="/no/such/folder", options=["bind", "no-such-option"]
                )
            ]
        ),
        "option",
        Code.UNKNOWN,
    ),
    Row("event topic without slash", publish("topic"), "topic"),
    Row("event topic empty", publish(""), "topic"),
    *listing("=="),
    *listing("id=~x"),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_is_refused(row: Row, wire: Wire) -> None:
    if not wire.ours and row.reference is None:
        pytest.skip("containerd accepts this or ends the call in another way")
    with wire.refused(INVALID, row.field, reference=row.reference):
        row.call(wire)
    assert not wire.containers.List(c.ListContainersRequest()).containers
    assert not wire.images.List(i.ListImagesRequest()).images
    assert not wire.leases.List(le.ListRequest()).leases
    assert not sweep.names(wire, "overlayfs")
    assert "good" not in {
        x.name for x in wire.namespaces.List(n.ListNamespacesRequest()).namespaces
    }


# --- tasks, which need a container ----------------------------------------------------------------


def test_exec_ids_and_specs(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.run(unique, parent=shop.chain_id)
    for exec_id in ("", "a/b", LONG):
        with wire.refused(INVALID, "exec"):
            wire.exec(unique, exec_id, ["true"])
    request = t.ExecProcessRequest(container_id=unique, exec_id="e")
    for value in (b"not json", DEEP):
        request.spec.type_url, request.spec.value = "x", value
        with pytest.raises(grpc.RpcError) as caught:
            wire.tasks.Exec(request)
            wire.start(unique, "e")
        if wire.ours:
            assert caught.value.code() is INVALID
            assert "spec" in (caught.value.details() or "")
    assert len(wire.tasks.ListPids(t.ListPidsRequest(container_id=unique)).processes) == 1


@pytest.mark.only("supervisord", reason="containerd passes a malformed spec on to the runtime")
@pytest.mark.parametrize("value", [b"", b"not json", b"[]", b'{"process": 7}', b"{}", DEEP])
def test_spec_of_a_task(shop: Shop, daemon: Daemon, unique: str, value: bytes) -> None:
    wire = shop.wire
    before = set(daemon.processes())
    record = container(unique)
    record.spec.value = value
    with wire.refused(INVALID, "spec"):
        wire.containers.Create(c.CreateContainerRequest(container=record))
        wire.tasks.Create(t.CreateTaskRequest(container_id=unique))
    assert wire.tasks_by_id() == {}
    assert not set(daemon.processes()) - before
    assert not list(daemon.state.rglob(f"*{unique}*"))


def test_rootfs_mounts_of_a_task(shop: Shop, daemon: Daemon, unique: str) -> None:
    wire = shop.wire
    before = daemon.mounts()
    wire.container(unique, parent=shop.chain_id)
    for mount in (
        types_pb2.Mount(type="nosuchfs", source="/x"),
        types_pb2.Mount(type="bind", source="/no/such/folder", options=["rbind"]),
        types_pb2.Mount(type="overlay", source="overlay", options=["nonsense=1"]),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            wire.tasks.Create(t.CreateTaskRequest(container_id=unique, rootfs=[mount]))
        assert "mount" in (caught.value.details() or "")
        assert wire.tasks_by_id() == {}
        assert daemon.mounts() == before
    wire.create_task(unique)
    wire.start(unique)


def test_malformed_resources_of_an_update(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.run(unique, parent=shop.chain_id)
    request = t.UpdateTaskRequest(container_id=unique)
    request.resources.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    for value in (b"not json", json.dumps({"memory": {"limit": "much"}}).encode(), DEEP):
        request.resources.value = value
        with wire.refused(INVALID, "resources", reference=Code.UNKNOWN):
            wire.tasks.Update(request)


def test_signal_numbers(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.run(unique, parent=shop.chain_id)
    with wire.refused(INVALID, "signal", reference=Code.UNKNOWN):
        wire.kill(unique, 200)
    assert wire.tasks_by_id()[unique].status == 2
