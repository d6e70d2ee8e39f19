"""Namespaces, containers, images and leases: rules, updates, messages and events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protos.containerd.events import events_pb2
from protos.containerd.services.containers.v1 import containers_pb2
from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease, Resource
from supervisord.contracts.namespaces import Namespace
from supervisord.contracts.typed import TypedValue
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, MemorySnapshotter, Recorder, add_blob, opened

DIGEST = "sha256:" + "a" * 64
SPEC = TypedValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}")
WEB = Container("web", {"tier": "web"}, "img", Runtime("io.containerd.runc.v2"), SPEC)
IMAGE = Image("docker.io/library/a:1", Descriptor("type/manifest", DIGEST, 7, {"n": "1"}))


async def test_namespaces(metadata: Metadata, events: Recorder) -> None:
    store = metadata.namespaces
    await store.create(Namespace("b", {"k": "v", "none": ""}))
    await store.create(Namespace("a"))
    assert [n.name for n in store.list()] == ["a", "b"]
    assert dict(store.get("b").labels) == {"k": "v"}
    with pytest.raises(AlreadyExists, match="already exists"):
        await store.create(Namespace("a"))
    with pytest.raises(InvalidArgument, match=r"namespace\.name"):
        await store.create(Namespace("a/b"))
    updated = await store.update(Namespace("b", {"k": "", "x": "y"}), ["labels.k", "labels.x"])
    assert dict(updated.labels) == {"x": "y"}
    await store.update(Namespace("b", {"z": "1"}), [])
    assert dict(store.get("b").labels) == {"z": "1"}
    assert store.get("none") == Namespace("none")
    await store.update(Namespace("made", {"by": "update"}), [])
    assert [n.name for n in store.list()] == ["a", "b", "made"]
    with pytest.raises(InvalidArgument):
        await store.update(Namespace("b"), ["name"])
    with pytest.raises(InvalidArgument):
        await store.update(Namespace("no/ne"), [])
    await store.delete("b")
    with pytest.raises(NotFound, match='"b"'):
        await store.delete("b")
    assert events.events[0] == (
        "b",
        "/namespaces/create",
        events_pb2.NamespaceCreate(name="b", labels={"k": "v"}),
    )
    assert events.topics()[-1] == "/namespaces/delete"


async def test_a_namespace_that_is_not_empty_stays(metadata: Metadata) -> None:
    await metadata.images.create("test", IMAGE)
    await add_blob(metadata, b"x")
    await metadata.containers.create("test", WEB)
    await metadata.snapshots["memory"].prepare(SCOPE, "s", "", {})
    with pytest.raises(FailedPrecondition) as caught:
        await metadata.namespaces.delete("test")
    assert (
        'still has images, blobs, containers, snapshots on "memory" snapshotter'
        in caught.value.message
    )
    await metadata.images.delete("test", IMAGE.name)
    await metadata.containers.delete("test", "web")
    await metadata.snapshots["memory"].remove(SCOPE, "s")
    await metadata.garbage.sweep()
    await metadata.leases.create("test", Lease("L"))
    await (await metadata.content.writer(SCOPE, "open")).close()
    await metadata.namespaces.delete("test")
    await metadata.namespaces.create(Namespace("test"))
    assert metadata.leases.list("test") == []
    assert await metadata.content.statuses(SCOPE) == []


async def test_a_container_is_created_and_served_as_bytes(
    metadata: Metadata, events: Recorder
) -> None:
    store = metadata.containers
    full = replace(
        WEB,
        runtime=Runtime("io.containerd.runc.v2", TypedValue("opts", b"o")),
        snapshotter="memory",
        snapshot_key="k",
        extensions={"e": TypedValue("t", b"v")},
        sandbox="pod",
    )
    made = await store.create("test", full)
    assert made.created_at == made.updated_at > 0
    assert store.get("test", "web") == made
    message = containers_pb2.Container.FromString(store.record("test", "web"))
    assert message.runtime.options.type_url == "opts"
    assert message.extensions["e"].value == b"v"
    assert message.created_at.ToNanoseconds() == made.created_at
    assert [n.name for n in metadata.namespaces.list()] == ["test"]
    [(namespace, topic, event)] = events.events
    assert (namespace, topic) == ("test", "/containers/create")
    assert isinstance(event, events_pb2.ContainerCreate)
    assert (event.id, event.image, event.runtime.options.value) == ("web", "img", b"o")
    with pytest.raises(AlreadyExists, match='container "web": already exists'):
        await store.create("test", WEB)
    with pytest.raises(NotFound, match='"none"'):
        store.get("test", "none")
    with pytest.raises(NotFound):
        store.record("other", "web")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (replace(WEB, id="a b"), "container.id"),
        (replace(WEB, id=""), "container.id"),
        (replace(WEB, runtime=Runtime("")), "container.runtime.name"),
        (replace(WEB, spec=TypedValue()), "container.spec"),
        (replace(WEB, snapshot_key="k"), "container.snapshotter"),
        (replace(WEB, labels={"k": "v" * 4096}), "container.labels"),
        (replace(WEB, extensions={"": TypedValue("t")}), "container.extensions"),
    ],
)
async def test_bad_containers(metadata: Metadata, bad: Container, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await metadata.containers.create("test", bad)
    assert metadata.containers.list("test") == []
    assert metadata.namespaces.list() == []


async def test_containers_are_listed_and_filtered(metadata: Metadata) -> None:
    store = metadata.containers
    for name in ("c", "a", "b"):
        await store.create("test", replace(WEB, id=name, labels={"n": name}))
    assert [c.id for c in store.list("test")] == ["a", "b", "c"]
    assert len(store.records("test", [])) == 3
    assert store.list("other") == []
    for given, found in [
        (["id==a"], "a"),
        (["id~=^[ab]$"], "ab"),
        (["labels.n==c", "id==a"], "ac"),
        (["image==img"], "abc"),
        (["runtime.name==io.containerd.runc.v2,labels.n!=a"], "bc"),
        (["runtime"], ""),
        (["nothing"], ""),
    ]:
        assert "".join(c.id for c in store.list("test", given)) == found
    with pytest.raises(InvalidArgument):
        store.records("test", ["=="])


async def test_containers_are_updated_by_path(metadata: Metadata, events: Recorder) -> None:
    store = metadata.containers
    made = await store.create("test", WEB)
    changed = await store.update(
        "test",
        replace(
            WEB,
            labels={"tier": "", "new": "1"},
            image="other",
            extensions={"e": TypedValue("t", b"1")},
            spec=TypedValue("s", b"2"),
        ),
        ["labels.tier", "labels.new", "image", "extensions.e", "spec", "snapshotkey"],
    )
    assert (dict(changed.labels), changed.image) == ({"new": "1"}, "other")
    assert dict(changed.extensions) == {"e": TypedValue("t", b"1")}
    assert changed.spec.value == b"2"
    assert changed.created_at == made.created_at < changed.updated_at
    assert store.get("test", "web") == changed
    changed = await store.update("test", replace(WEB, image="third"), [])
    assert (changed.image, dict(changed.labels), dict(changed.extensions)) == (
        "third",
        {"tier": "web"},
        {},
    )
    for path in ("id", "runtime", "created_at", "sandbox"):
        with pytest.raises(InvalidArgument, match=f'"{path}"'):
            await store.update("test", WEB, [path])
    with pytest.raises(InvalidArgument, match="immutable"):
        await store.update("test", replace(WEB, runtime=Runtime("x")), [])
    with pytest.raises(InvalidArgument, match="immutable"):
        await store.update("test", replace(WEB, snapshotter="x"), [])
    with pytest.raises(InvalidArgument, match=r"container\.snapshotter"):
        await store.update("test", replace(WEB, snapshot_key="x"), ["snapshotkey"])
    with pytest.raises(NotFound):
        await store.update("other", WEB, ["labels"])
    await store.delete("test", "web")
    with pytest.raises(NotFound):
        await store.delete("test", "web")
    assert events.topics() == [
        "/containers/create",
        "/containers/update",
        "/containers/update",
        "/containers/delete",
    ]


async def test_images(metadata: Metadata, events: Recorder) -> None:
    store = metadata.images
    made = await store.create("test", IMAGE)
    assert store.get("test", IMAGE.name) == made
    await store.create("test", replace(IMAGE, name="b", labels={"x": "y"}, created_at=5))
    assert store.get("test", "b").created_at == 5
    assert [i.name for i in store.list("test")] == ["b", IMAGE.name]
    for given, found in [
        (["name==b"], ["b"]),
        ([f"target.digest=={DIGEST}"], ["b", IMAGE.name]),
        (["target.mediatype~=manifest"], ["b", IMAGE.name]),
        (["labels.x==y"], ["b"]),
        (["annotations.n==2"], []),
        (["target.size==7"], []),
    ]:
        assert [i.name for i in store.list("test", given)] == found
    with pytest.raises(AlreadyExists):
        await store.create("test", IMAGE)
    changed = await store.update(
        "test",
        replace(IMAGE, labels={"l": "1"}, target=Descriptor("", "", 0, {"m": "2"})),
        ["labels.l", "annotations.m"],
    )
    assert (dict(changed.labels), dict(changed.target.annotations)) == (
        {"l": "1"},
        {"n": "1", "m": "2"},
    )
    assert changed.target.digest == DIGEST
    target = Descriptor("t", "sha256:" + "b" * 64, 3)
    changed = await store.update("test", replace(IMAGE, target=target), ["target"])
    assert changed.target == target
    assert changed.created_at == made.created_at
    with pytest.raises(InvalidArgument, match='"name"'):
        await store.update("test", IMAGE, ["name"])
    with pytest.raises(NotFound, match="has target"):
        await store.delete("test", IMAGE.name, Descriptor("t", DIGEST, 1))
    await store.delete("test", IMAGE.name, target)
    with pytest.raises(NotFound):
        store.get("test", IMAGE.name)
    with pytest.raises(NotFound):
        await store.update("test", IMAGE, [])
    assert events.topics().count("/images/update") == 2
    assert events.topics()[-1] == "/images/delete"
    assert events.events[0][2].DESCRIPTOR.full_name == "containerd.services.images.v1.ImageCreate"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (replace(IMAGE, name=""), "image.name"),
        (replace(IMAGE, target=Descriptor("t", "sha256:abc", 1)), "image.target.digest"),
        (replace(IMAGE, target=Descriptor("t", DIGEST, 0)), "image.target.size"),
        (replace(IMAGE, target=Descriptor("", DIGEST, 1)), "image.target.media_type"),
        (replace(IMAGE, labels={"": "x"}), "image.labels"),
    ],
)
async def test_bad_images(metadata: Metadata, bad: Image, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await metadata.images.create("test", bad)


async def test_a_lease_that_is_to_end(metadata: Metadata) -> None:
    store = metadata.leases
    await store.create("test", Lease("a", labels={"l": "1"}))
    await store.expire("test", "a", 3600)
    labels = dict(store.get("test", "a").labels)
    until = datetime.fromisoformat(labels.pop("containerd.io/gc.expire"))
    assert labels == {"l": "1"}
    assert timedelta(minutes=59) < until - datetime.now(UTC) <= timedelta(hours=1)
    await store.add_resource("test", "a", Resource("content", DIGEST))
    await store.expire("test", "a", -5)
    await metadata.garbage.sweep()
    assert store.list("test") == []
    with pytest.raises(NotFound):
        await store.expire("test", "a", 1)


async def test_leases(metadata: Metadata) -> None:
    store = metadata.leases
    await store.create("test", Lease("b", labels={"l": "1"}))
    made = await store.create("test", Lease("a"))
    assert store.get("test", "a") == made
    assert (await store.create("test", Lease(""))).id
    assert [lease.id for lease in store.list("test", ["id==a", "labels.l==1"])] == ["a", "b"]
    with pytest.raises(AlreadyExists):
        await store.create("test", Lease("a"))
    for resource in (
        Resource("snapshots/memory", "k"),
        Resource("content", DIGEST),
        Resource("ingests", "r"),
        Resource("ingests", "r"),
        Resource("images", "i"),
    ):
        await store.add_resource("test", "a", resource)
    assert [(r.type, r.id) for r in store.list_resources("test", "a")] == [
        ("content", DIGEST),
        ("images", "i"),
        ("ingests", "r"),
        ("snapshots/memory", "k"),
    ]
    assert store.list_resources("test", "b") == []
    await store.delete_resource("test", "a", Resource("ingests", "r"))
    await store.delete_resource("test", "a", Resource("ingests", "gone"))
    assert len(store.list_resources("test", "a")) == 3
    for bad, error in [
        (Resource("tasks", "x"), Unimplemented),
        (Resource("content", "x"), InvalidArgument),
        (Resource("content/x", DIGEST), InvalidArgument),
        (Resource("snapshots", "x"), InvalidArgument),
        (Resource("snapshots/a/b", "x"), InvalidArgument),
        (Resource("ingests", ""), InvalidArgument),
    ]:
        with pytest.raises(error):
            await store.add_resource("test", "a", bad)
    with pytest.raises(NotFound):
        await store.add_resource("test", "none", Resource("ingests", "r"))
    with pytest.raises(NotFound):
        store.list_resources("other", "a")
    await store.delete("test", "a", sync=True)
    with pytest.raises(NotFound):
        await store.delete("test", "a")
    await store.create("test", Lease("a"))
    assert store.list_resources("test", "a") == []


async def test_a_damaged_row_hides_no_other(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    await stores.containers.create("test", WEB)
    await stores.images.create("test", IMAGE)
    await stores.database.write(
        lambda c: c.execute("INSERT INTO containers VALUES ('test', 'bad', x'ffff')")
    )
    await stores.database.write(
        lambda c: c.execute(
            "INSERT INTO images VALUES ('test', 'bad', '', '', 0, x'7b7d', x'ff', 0, 0, NULL)"
        )
    )
    assert [c.id for c in stores.containers.list("test")] == ["web"]
    assert [i.name for i in stores.images.list("test")] == [IMAGE.name]
    with pytest.raises(DataLoss, match="damaged"):
        stores.images.get("test", "bad")
    await stores.containers.delete("test", "bad")
    await stores.images.delete("test", "bad")
    digest = await add_blob(stores, b"x", {"containerd.io/gc.root": "1"})
    await stores.snapshots["memory"].prepare(SCOPE, "s", "", {})
    await stores.leases.create("test", Lease("L"))
    for table in ("blobs", "snapshots", "leases"):
        await stores.database.write(lambda c, t=table: c.execute(f"UPDATE {t} SET labels = 'x'"))  # type: ignore[misc]  # noqa: S608
    assert await stores.content.read_blob(SCOPE, digest) == b"x"
    await stores.leases.delete("test", "L")
    await stores.snapshots["memory"].remove(SCOPE, "s")
    await stores.content.delete(SCOPE, digest)
    await stores.garbage.sweep()
    assert backend.snapshots == {}
    await stores.close()
