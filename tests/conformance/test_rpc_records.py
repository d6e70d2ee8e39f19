"""Namespaces, containers, images and leases over gRPC: field masks, filters, codes, streams."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.containers.v1 import containers_pb2 as c
from protos.containerd.services.images.v1 import images_pb2 as i
from protos.containerd.services.leases.v1 import leases_pb2 as le
from protos.containerd.services.namespaces.v1 import namespaces_pb2 as n
from protos.containerd.types import types_pb2

from .ocitar import MANIFEST, sha256
from .wire import RUNTIME, Wire

Code = grpc.StatusCode


# --- namespaces -----------------------------------------------------------------------------------


def namespace_labels(wire: Wire, name: str) -> dict[str, str]:
    """The labels of a namespace."""
    answer = wire.namespaces.Get(n.GetNamespaceRequest(name=name))
    return dict(answer.namespace.labels)


def test_namespace_life(wire: Wire, unique: str) -> None:
    made = n.Namespace(name=unique, labels={"a": "1", "b": "2"})
    answer = wire.namespaces.Create(n.CreateNamespaceRequest(namespace=made))
    assert answer.namespace == made
    with wire.refused(Code.ALREADY_EXISTS, unique):
        wire.namespaces.Create(n.CreateNamespaceRequest(namespace=made))
    assert namespace_labels(wire, unique) == {"a": "1", "b": "2"}
    listed = wire.namespaces.List(n.ListNamespacesRequest()).namespaces
    assert made in list(listed)
    wire.namespaces.Delete(n.DeleteNamespaceRequest(name=unique))
    assert made not in list(wire.namespaces.List(n.ListNamespacesRequest()).namespaces)
    with wire.refused(Code.NOT_FOUND, unique):
        wire.namespaces.Delete(n.DeleteNamespaceRequest(name=unique))


def test_absent_namespace_has_no_labels(wire: Wire, unique: str) -> None:
    """Client libraries ask for the default runtime and snapshotter so, before the first use."""
    answer = wire.namespaces.Get(n.GetNamespaceRequest(name=unique)).namespace
    assert answer == n.Namespace(name=unique)


def test_namespace_update_by_mask_and_whole(wire: Wire, unique: str) -> None:
    made = n.Namespace(name=unique, labels={"a": "1", "b": "2"})
    wire.namespaces.Create(n.CreateNamespaceRequest(namespace=made))
    change = n.Namespace(name=unique, labels={"a": "9", "c": "3"})
    request = n.UpdateNamespaceRequest(namespace=change, update_mask=FieldMask(paths=["labels.a"]))
    wire.namespaces.Update(request)
    assert namespace_labels(wire, unique) == {"a": "9", "b": "2"}
    request.update_mask.paths[:] = ["labels.b"]  # absent from the request: removed
    wire.namespaces.Update(request)
    assert namespace_labels(wire, unique) == {"a": "9"}
    wire.namespaces.Update(
        n.UpdateNamespaceRequest(namespace=n.Namespace(name=unique, labels={"z": "0"}))
    )
    assert namespace_labels(wire, unique) == {"z": "0"}
    request.update_mask.paths[:] = ["name"]
    with wire.refused(Code.INVALID_ARGUMENT, "name"):
        wire.namespaces.Update(request)
    wire.namespaces.Delete(n.DeleteNamespaceRequest(name=unique))


def test_namespace_with_each_kind_of_thing_is_not_deleted(wire: Wire) -> None:
    wire.leases.Create(le.CreateRequest(id="l"))
    record = c.Container(id="c", runtime=c.Container.Runtime(name=RUNTIME))
    record.spec.CopyFrom(AnyMessage(type_url="t", value=b"{}"))
    wire.containers.Create(c.CreateContainerRequest(container=record))
    with wire.refused(Code.FAILED_PRECONDITION, wire.namespace, "containers"):
        wire.namespaces.Delete(n.DeleteNamespaceRequest(name=wire.namespace))


# --- containers -----------------------------------------------------------------------------------


def container(id: str, **more: Any) -> c.Container:
    """A valid record."""
    record = c.Container(id=id, image="some/image", snapshot_key="key", snapshotter="overlayfs")
    record.runtime.name = RUNTIME
    record.spec.type_url, record.spec.value = "some.Spec", b"{}"
    record.labels["a"] = "1"
    record.labels["b.c/d"] = "2"
    record.extensions["e"].type_url = "some.Ext"
    record.extensions["e"].value = b"\x01"
    for key, value in more.items():
        setattr(record, key, value)
    return record


def create(wire: Wire, record: c.Container) -> c.Container:
    """Creates it; answers what the daemon stored."""
    return wire.containers.Create(c.CreateContainerRequest(container=record)).container


def get(wire: Wire, id: str) -> c.Container:
    """One container."""
    return wire.containers.Get(c.GetContainerRequest(id=id)).container


def test_container_is_stored_as_it_was(wire: Wire, unique: str) -> None:
    before = time.time()
    stored = create(wire, container(unique))
    assert before - 1 <= stored.created_at.seconds <= time.time() + 1
    assert stored.created_at == stored.updated_at
    assert get(wire, unique) == stored
    stored.ClearField("created_at")
    stored.ClearField("updated_at")
    assert stored == container(unique)


def test_container_codes(wire: Wire, unique: str) -> None:
    create(wire, container(unique))
    with wire.refused(Code.ALREADY_EXISTS, unique):
        create(wire, container(unique))
    with wire.refused(Code.NOT_FOUND, "absent"):
        get(wire, "absent")
    with wire.refused(Code.NOT_FOUND, "absent"):
        wire.containers.Delete(c.DeleteContainerRequest(id="absent"))
    with wire.refused(Code.NOT_FOUND, "absent"):
        wire.containers.Update(c.UpdateContainerRequest(container=container("absent")))
    wire.containers.Delete(c.DeleteContainerRequest(id=unique))
    with wire.refused(Code.NOT_FOUND, unique):
        get(wire, unique)
    create(wire, container(unique))


def test_container_without_runtime_or_spec_is_refused(wire: Wire, unique: str) -> None:
    record = container(unique)
    record.ClearField("runtime")
    with wire.refused(Code.INVALID_ARGUMENT, "runtime"):
        create(wire, record)
    record = container(unique)
    record.ClearField("spec")
    with wire.refused(Code.INVALID_ARGUMENT, "spec"):
        create(wire, record)
    record = container(unique, snapshotter="")
    with wire.refused(Code.INVALID_ARGUMENT, "snapshotter"):
        create(wire, record)


def update(wire: Wire, record: c.Container, *paths: str) -> c.Container:
    """Updates by a mask; answers what is stored now."""
    request = c.UpdateContainerRequest(container=record)
    if paths:
        request.update_mask.paths.extend(paths)
    return wire.containers.Update(request).container


def test_container_update_by_mask(wire: Wire, unique: str) -> None:
    stored = create(wire, container(unique))
    change = container(unique, image="other/image", snapshot_key="other")
    change.labels.clear()
    change.labels["a"] = "9"
    change.labels["n.e/w"] = "7"
    change.extensions["e"].value = b"\x02"
    change.extensions["f"].type_url = "some.F"
    updated = update(wire, change, "labels.a")
    assert dict(updated.labels) == {"a": "9", "b.c/d": "2"}
    assert updated.image == "some/image"
    assert updated.created_at == stored.created_at
    assert updated.updated_at.ToNanoseconds() > stored.updated_at.ToNanoseconds()
    updated = update(wire, change, "labels.n.e/w")
    assert dict(updated.labels) == {"a": "9", "b.c/d": "2", "n.e/w": "7"}
    updated = update(wire, change, "labels")
    assert dict(updated.labels) == {"a": "9", "n.e/w": "7"}
    updated = update(wire, change, "extensions.f")
    assert set(updated.extensions) == {"e", "f"}
    assert updated.extensions["e"].value == b"\x01"
    updated = update(wire, change, "image", "snapshotkey")
    assert (updated.image, updated.snapshot_key) == ("other/image", "other")
    assert get(wire, unique) == updated


def test_container_update_without_mask(wire: Wire, unique: str) -> None:
    create(wire, container(unique))
    change = container(unique, image="other/image")
    change.labels.clear()
    change.labels["only"] = "this"
    updated = update(wire, change)
    assert dict(updated.labels) == {"only": "this"}
    assert updated.image == "other/image"


def test_container_update_of_what_never_changes(wire: Wire, unique: str) -> None:
    create(wire, container(unique))
    for field in ("runtime", "nonsense", "created_at"):
        with wire.refused(Code.INVALID_ARGUMENT, field):
            update(wire, container(unique), field)
    change = container(unique)
    change.runtime.name = "io.containerd.other.v1"
    with wire.refused(Code.INVALID_ARGUMENT, "runtime"):
        update(wire, change)
    change = container(unique, snapshotter="native")
    with wire.refused(Code.INVALID_ARGUMENT, "snapshotter"):
        update(wire, change)


FILTERS = [
    (["id==one"], ["one"]),
    (["id!=one"], ["three", "two"]),
    (["id~=^t"], ["three", "two"]),
    (["labels.color==red"], ["one"]),
    (["labels.color"], ["one", "two"]),
    (['labels."with.dots/x"==y'], ["three"]),
    (["id==one", "id==two"], ["one", "two"]),
    (["labels.color==red,id==two"], []),
    (["image==some/image"], ["one", "three", "two"]),
    (["id="], None),
    (["id==a b"], None),
    (['id=="open'], None),
    (["==x"], None),
    (['image=="some/image",runtime.name==io.containerd.runc.v2'], ["one", "three", "two"]),
    (["nosuchfield==x"], []),
    ([], ["one", "three", "two"]),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_container_filters(wire: Wire, filters: list[str], expected: list[str] | None) -> None:
    for id, labels in (
        ("one", {"color": "red"}),
        ("two", {"color": "blue"}),
        ("three", {"with.dots/x": "y"}),
    ):
        record = container(id)
        record.labels.clear()
        record.labels.update(labels)
        create(wire, record)
    request = c.ListContainersRequest(filters=filters)
    if expected is None:
        with wire.refused(Code.INVALID_ARGUMENT, "filter"):
            wire.containers.List(request)
        return
    assert [x.id for x in wire.containers.List(request).containers] == expected
    assert [m.container.id for m in wire.containers.ListStream(request)] == expected


def test_containers_of_namespaces_do_not_meet(wire: Wire, unique: str) -> None:
    other = wire.scoped(f"{wire.namespace}-other")
    try:
        create(wire, container(unique))
        create(other, container(unique))
        wire.containers.Delete(c.DeleteContainerRequest(id=unique))
        assert get(other, unique).id == unique
        assert list(wire.containers.List(c.ListContainersRequest()).containers) == []
        other.containers.Delete(c.DeleteContainerRequest(id=unique))
    finally:
        other.namespaces.Delete(n.DeleteNamespaceRequest(name=other.namespace))
        other.close()


def test_many_containers_stream(wire: Wire) -> None:
    for number in range(60):
        record = container(f"c{number:03}")
        record.spec.value = b"x" * 20_000
        create(wire, record)
    ids = [m.container.id for m in wire.containers.ListStream(c.ListContainersRequest())]
    assert ids == [f"c{number:03}" for number in range(60)]


# --- images ---------------------------------------------------------------------------------------


def image(name: str, **more: Any) -> i.Image:
    """A valid image record; its target need not exist."""
    target = types_pb2.Descriptor(
        media_type=MANIFEST, digest=sha256(b"target"), size=6, annotations={"k": "v"}
    )
    return i.Image(name=name, labels={"a": "1", "b": "2"}, target=target, **more)


def test_image_life(wire: Wire) -> None:
    made = wire.images.Create(i.CreateImageRequest(image=image("some/name:tag"))).image
    assert made.target == image("x").target
    assert made.created_at == made.updated_at
    with wire.refused(Code.ALREADY_EXISTS, "some/name:tag"):
        wire.images.Create(i.CreateImageRequest(image=image("some/name:tag")))
    got = wire.images.Get(i.GetImageRequest(name="some/name:tag")).image
    assert got == made
    listed = wire.images.List(i.ListImagesRequest(filters=['name=="some/name:tag"'])).images
    assert list(listed) == [made]
    assert not wire.images.List(i.ListImagesRequest(filters=["name==other"])).images
    wire.images.Delete(i.DeleteImageRequest(name="some/name:tag"))
    with wire.refused(Code.NOT_FOUND, "some/name:tag"):
        wire.images.Get(i.GetImageRequest(name="some/name:tag"))
    with wire.refused(Code.NOT_FOUND, "some/name:tag"):
        wire.images.Delete(i.DeleteImageRequest(name="some/name:tag"))


def test_image_update(wire: Wire) -> None:
    wire.images.Create(i.CreateImageRequest(image=image("name")))
    change = image("name")
    change.labels.clear()
    change.labels["a"] = "9"
    change.target.digest = sha256(b"other")
    request = i.UpdateImageRequest(image=change, update_mask=FieldMask(paths=["labels.a"]))
    updated = wire.images.Update(request).image
    assert dict(updated.labels) == {"a": "9", "b": "2"}
    assert updated.target.digest == sha256(b"target")
    request.update_mask.paths[:] = ["target"]
    updated = wire.images.Update(request).image
    assert updated.target.digest == sha256(b"other")
    assert dict(updated.labels) == {"a": "9", "b": "2"}
    request.update_mask.paths[:] = ["labels"]
    assert dict(wire.images.Update(request).image.labels) == {"a": "9"}
    request.update_mask.paths[:] = ["created_at"]
    with wire.refused(Code.INVALID_ARGUMENT, "created_at"):
        wire.images.Update(request)
    absent = i.UpdateImageRequest(image=image("absent"))
    with wire.refused(Code.NOT_FOUND, "absent"):
        wire.images.Update(absent)


def test_image_without_a_target_is_refused(wire: Wire) -> None:
    with wire.refused(Code.INVALID_ARGUMENT, "name"):
        wire.images.Create(i.CreateImageRequest(image=image("")))
    for field, value in (("digest", "sha256:short"), ("media_type", ""), ("size", 0)):
        record = image("name")
        setattr(record.target, field, value)
        with wire.refused(Code.INVALID_ARGUMENT, "target"):
            wire.images.Create(i.CreateImageRequest(image=record))
    assert not wire.images.List(i.ListImagesRequest()).images


@pytest.mark.only("supervisord", reason="containerd 1.6 does not know the request's target")
def test_image_delete_only_where_it_still_points(wire: Wire) -> None:
    wire.images.Create(i.CreateImageRequest(image=image("name")))
    other = types_pb2.Descriptor(media_type=MANIFEST, digest=sha256(b"other"), size=5)
    with wire.refused(Code.NOT_FOUND, "name"):
        wire.images.Delete(i.DeleteImageRequest(name="name", target=other))
    wire.images.Delete(i.DeleteImageRequest(name="name", target=image("x").target))


# --- leases ---------------------------------------------------------------------------------------


def resources(wire: Wire, id: str) -> set[tuple[str, str]]:
    """What a lease holds."""
    answer = wire.leases.ListResources(le.ListResourcesRequest(id=id))
    return {(r.type, r.id) for r in answer.resources}


def test_lease_life(wire: Wire, unique: str) -> None:
    made = wire.leases.Create(le.CreateRequest(id=unique, labels={"a": "1"})).lease
    assert (made.id, dict(made.labels)) == (unique, {"a": "1"})
    assert abs(made.created_at.seconds - time.time()) < 5
    with wire.refused(Code.ALREADY_EXISTS, unique):
        wire.leases.Create(le.CreateRequest(id=unique))
    assert [x.id for x in wire.leases.List(le.ListRequest()).leases] == [unique]
    assert not wire.leases.List(le.ListRequest(filters=["id==other"])).leases
    wire.leases.Delete(le.DeleteRequest(id=unique))
    with wire.refused(Code.NOT_FOUND, unique):
        wire.leases.Delete(le.DeleteRequest(id=unique))
    with wire.refused(Code.NOT_FOUND, unique):
        resources(wire, unique)


def test_lease_resources(wire: Wire, unique: str) -> None:
    wire.leases.Create(le.CreateRequest(id=unique))
    wanted = {
        ("content", sha256(b"x")),
        ("ingests", "some-ref"),
        ("snapshots/overlayfs", "some-key"),
    }
    for type, id in wanted:
        resource = le.Resource(id=id, type=type)
        wire.leases.AddResource(le.AddResourceRequest(id=unique, resource=resource))
    assert resources(wire, unique) == wanted
    first = le.Resource(id="some-ref", type="ingests")
    wire.leases.DeleteResource(le.DeleteResourceRequest(id=unique, resource=first))
    assert resources(wire, unique) == wanted - {("ingests", "some-ref")}


def test_lease_resource_codes(wire: Wire, unique: str) -> None:
    wire.leases.Create(le.CreateRequest(id=unique))
    for type in ("nonsense", "content/x", "snapshots"):
        resource = le.Resource(id="x", type=type)
        with pytest.raises(grpc.RpcError) as caught:
            wire.leases.AddResource(le.AddResourceRequest(id=unique, resource=resource))
        error: Any = caught.value
        assert error.code() in (Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT)
        assert type in error.details()
    resource = le.Resource(id="x", type="ingests")
    with wire.refused(Code.NOT_FOUND, "absent"):
        wire.leases.AddResource(le.AddResourceRequest(id="absent", resource=resource))


def test_what_is_made_under_a_lease_belongs_to_it(wire: Wire, unique: str) -> None:
    from protos.containerd.services.content.v1 import content_pb2
    from protos.containerd.services.snapshots.v1 import snapshots_pb2

    wire.leases.Create(le.CreateRequest(id=unique))
    leased = wire.scoped(lease=unique)
    data = b"under a lease"
    write = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref="r", data=data, expected=sha256(data), total=len(data)
    )
    list(leased.content.Write(iter([write])))
    leased.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="k"))
    assert resources(wire, unique) >= {("content", sha256(data)), ("snapshots/overlayfs", "k")}
    other = le.CreateRequest(id=f"{unique}-2")
    wire.leases.Create(other)
    wire.leases.Delete(le.DeleteRequest(id=other.id, sync=True))
    assert wire.content.Info(content_pb2.InfoRequest(digest=sha256(data))).info.size == len(data)
    wire.leases.Delete(le.DeleteRequest(id=unique, sync=True))
    with wire.refused(Code.NOT_FOUND, sha256(data)):
        wire.content.Info(content_pb2.InfoRequest(digest=sha256(data)))
    with wire.refused(Code.NOT_FOUND, "k"):
        leased.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(snapshotter="overlayfs", key="k"))
    leased.close()


def test_an_absent_lease_is_refused(wire: Wire) -> None:
    from protos.containerd.services.snapshots.v1 import snapshots_pb2

    leased = wire.scoped(lease="absent")
    request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="k")
    with wire.refused(Code.NOT_FOUND, "absent"):
        leased.snapshots.Prepare(request)
    leased.close()
