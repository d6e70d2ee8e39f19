"""What garbage collection keeps and what it takes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from supervisord.contracts.content import Info
from supervisord.contracts.errors import NotFound
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease, Resource
from supervisord.contracts.scope import Scope
from supervisord.metadata import references
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, MemorySnapshotter, Recorder, add_blob
from .test_records import WEB

PREFIX = "containerd.io/gc."


def _at(seconds: float) -> str:
    when = datetime.fromtimestamp(time.time() + seconds, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


async def _blobs(stores: Metadata, scope: Scope = SCOPE) -> set[str]:
    await stores.garbage.sweep()
    return {info.digest async for info in stores.content.walk(scope)}


async def _snapshots(stores: Metadata) -> set[str]:
    await stores.garbage.sweep()
    return {info.name async for info in stores.snapshots["memory"].walk(SCOPE)}


async def _chain(stores: Metadata, *names: str) -> None:
    """Committed snapshots, each over the one before it."""
    store = stores.snapshots["memory"]
    parent = ""
    for name in names:
        await store.prepare(SCOPE, f"{name}-active", parent, {PREFIX + "root": "1"})
        await store.commit(SCOPE, name, f"{name}-active", {})
        parent = name


async def test_an_image_keeps_what_it_refers_to(metadata: Metadata, events: Recorder) -> None:
    layer = await add_blob(metadata, b"layer")
    dotted = await add_blob(metadata, b"dotted")
    await _chain(metadata, "base")
    await metadata.leases.create("test", Lease("L"))
    await metadata.leases.add_resource("test", "L", Resource("content", layer))
    await metadata.leases.add_resource("test", "L", Resource("content", dotted))
    await metadata.leases.add_resource("test", "L", Resource("snapshots/memory", "base"))
    config = await add_blob(metadata, b"config", {PREFIX + "ref.snapshot.memory": "base"})
    manifest = await add_blob(
        metadata,
        b"manifest",
        {
            PREFIX + "ref.content.l.0": layer,
            PREFIX + "ref.content/1": dotted,
            PREFIX + "ref.content": config,
        },
    )
    unrelated = await add_blob(metadata, b"x", {PREFIX + "ref.contents": manifest})
    await metadata.images.create("test", Image("i", Descriptor("t", manifest, 8)))
    await metadata.leases.delete("test", "L")
    assert await _blobs(metadata) == {layer, dotted, config, manifest}
    assert unrelated not in await _blobs(metadata)
    assert await _snapshots(metadata) == {"base"}
    await metadata.images.delete("test", "i")
    events.events.clear()
    assert await _blobs(metadata) == set()
    assert await _snapshots(metadata) == set()
    assert events.topics() == ["/snapshot/remove"]


async def test_roots(metadata: Metadata) -> None:
    kept = await add_blob(metadata, b"kept", {PREFIX + "root": "2020-01-01T00:00:00Z"})
    await add_blob(metadata, b"garbage")
    assert await _blobs(metadata) == {kept}
    await metadata.content.update(SCOPE, Info(kept, labels={PREFIX + "root": ""}), [])
    assert await _blobs(metadata) == set()


async def test_a_container_keeps_its_snapshot_and_parents(
    metadata: Metadata, backend: MemorySnapshotter
) -> None:
    await _chain(metadata, "one", "two")
    await metadata.snapshots["memory"].prepare(SCOPE, "rw", "two", {})
    blob = await add_blob(metadata, b"blob")
    container = replace(
        WEB,
        snapshotter="memory",
        snapshot_key="rw",
        labels={PREFIX + "ref.content.x": blob},
    )
    await metadata.containers.create("test", container)
    assert await _snapshots(metadata) == {"one", "two", "rw"}
    assert await _blobs(metadata) == {blob}
    assert len(backend.snapshots) == 3
    await metadata.containers.delete("test", "web")
    assert await _snapshots(metadata) == set()
    assert backend.snapshots == {}
    assert backend.cleanups > 0


async def test_back_references(metadata: Metadata) -> None:
    parent = await add_blob(metadata, b"parent", {PREFIX + "root": "1"})
    child = await add_blob(metadata, b"child", {PREFIX + "bref.content.x": parent})
    of_image = await add_blob(metadata, b"of image", {PREFIX + "bref.image": "i"})
    of_container = await add_blob(metadata, b"of container", {PREFIX + "bref.container/x": "web"})
    await metadata.snapshots["memory"].prepare(
        SCOPE, "s", "", {PREFIX + "bref.snapshot.memory/y": "t", PREFIX + "bref.content": parent}
    )
    of_snapshot = await add_blob(metadata, b"of s", {PREFIX + "bref.snapshot.memory": "s"})
    await metadata.images.create("test", Image("i", Descriptor("t", parent, 6)))
    await metadata.containers.create("test", WEB)
    everything = {parent, child, of_image, of_container, of_snapshot}
    assert await _blobs(metadata) == everything
    await metadata.images.delete("test", "i")
    await metadata.containers.delete("test", "web")
    assert await _blobs(metadata) == {parent, child, of_snapshot}
    await metadata.content.update(SCOPE, Info(parent, labels={}), [])
    assert await _blobs(metadata) == set()
    assert await _snapshots(metadata) == set()


async def test_leases_expire_and_can_be_flat(metadata: Metadata) -> None:
    layer = await add_blob(metadata, b"layer", {PREFIX + "root": "1"})
    manifest = await add_blob(metadata, b"manifest", {PREFIX + "ref.content.0": layer})
    await metadata.leases.create("test", Lease("deep", labels={PREFIX + "expire": _at(60)}))
    await metadata.leases.add_resource("test", "deep", Resource("content", manifest))
    await metadata.content.update(SCOPE, Info(layer, labels={}), [])
    assert await _blobs(metadata) == {layer, manifest}
    await metadata.leases.create("test", Lease("flat", labels={PREFIX + "flat": "1"}))
    await metadata.leases.add_resource("test", "flat", Resource("content", manifest))
    assert await _blobs(metadata) == {layer, manifest}
    await metadata.leases.delete("test", "deep")
    assert await _blobs(metadata) == {manifest}
    await metadata.leases.delete("test", "flat")
    await metadata.leases.create("test", Lease("past", labels={PREFIX + "expire": _at(-60)}))
    await metadata.leases.add_resource("test", "past", Resource("content", manifest))
    assert await _blobs(metadata) == set()
    with pytest.raises(NotFound):
        metadata.leases.get("test", "past")


async def test_a_flat_lease_keeps_parents(metadata: Metadata) -> None:
    blob = await add_blob(metadata, b"blob", {PREFIX + "root": "1"})
    await _chain(metadata, "one", "two")
    await metadata.leases.create("test", Lease("flat", labels={PREFIX + "flat": "1"}))
    await metadata.leases.add_resource("test", "flat", Resource("snapshots/memory", "two"))
    await metadata.leases.add_resource("test", "flat", Resource("images", "i"))
    expired = {PREFIX + "expire": _at(-1), PREFIX + "ref.snapshot.memory": "one"}
    await metadata.images.create("test", Image("i", Descriptor("t", blob, 4), expired))
    await metadata.content.update(SCOPE, Info(blob, labels={}), [])
    assert await _snapshots(metadata) == {"one", "two"}
    assert await _blobs(metadata) == {blob}
    assert [image.name for image in metadata.images.list("test")] == ["i"]


async def test_an_expired_image_goes(metadata: Metadata, events: Recorder) -> None:
    blob = await add_blob(metadata, b"blob")
    labels = {PREFIX + "expire": _at(-1)}
    await metadata.images.create("test", Image("i", Descriptor("t", blob, 4), labels))
    labels = {PREFIX + "expire": "soon"}
    await metadata.images.create("test", Image("j", Descriptor("t", blob, 4), labels))
    events.events.clear()
    assert await _blobs(metadata) == {blob}
    assert [image.name for image in metadata.images.list("test")] == ["j"]
    assert events.topics() == ["/images/delete"]


async def test_a_lease_holds_an_expired_image(metadata: Metadata) -> None:
    blob = await add_blob(metadata, b"blob", {PREFIX + "root": "1"})
    image = Image("i", Descriptor("t", blob, 4), {PREFIX + "expire": _at(-1)})
    with pytest.raises(NotFound, match="lease"):
        await metadata.images.create("test", image, lease="L")
    await metadata.leases.create("test", Lease("L"))
    await metadata.images.create("test", image, lease="L")
    await metadata.images.create("test", replace(image, name="j", labels={}), lease="L")
    await metadata.garbage.sweep()
    assert [(r.type, r.id) for r in metadata.leases.list_resources("test", "L")] == [
        ("images", "i")
    ]
    assert metadata.images.get("test", "i")
    await metadata.leases.delete("test", "L", sync=True)
    assert [image.name for image in metadata.images.list("test")] == ["j"]


async def test_ingests(metadata: Metadata) -> None:
    plain = await metadata.content.writer(SCOPE, "plain")
    await metadata.leases.create("test", Lease("L"))
    leased = await metadata.content.writer(Scope("test", "L"), "leased")
    await metadata.leases.delete("test", "L")
    await leased.close()
    await metadata.garbage.sweep()
    assert [s.ref for s in await metadata.content.statuses(SCOPE)] == ["plain"]
    await metadata.database.write(lambda c: c.execute("UPDATE ingests SET expires_at = 1"))
    await metadata.garbage.sweep()  # it has a writer
    assert [s.ref for s in await metadata.content.statuses(SCOPE)] == ["plain"]
    await plain.close()
    await metadata.garbage.sweep()
    assert await metadata.content.statuses(SCOPE) == []


async def test_namespaces_do_not_keep_each_others_things(metadata: Metadata) -> None:
    other = Scope("other")
    here = await add_blob(metadata, b"here")
    there = await add_blob(metadata, b"there", {PREFIX + "root": "1"}, other)
    await metadata.images.create("other", Image("i", Descriptor("t", here, 4)))
    await add_blob(metadata, b"here", {}, other)
    assert await _blobs(metadata) == set()
    assert await _blobs(metadata, other) == {here, there}
    assert await metadata.content.read_blob(other, here) == b"here"


async def test_what_gets_a_reference_meanwhile_stays(metadata: Metadata) -> None:
    """Blobs that come and get an image while collections run are never lost."""

    async def bring(number: int) -> str:
        await metadata.leases.create("test", Lease(f"l{number}"))
        scope = Scope("test", f"l{number}")
        digest = await add_blob(metadata, b"%d" % number, scope=scope)
        await metadata.images.create("test", Image(f"i{number}", Descriptor("t", digest, 1)))
        await metadata.leases.delete("test", f"l{number}")
        return digest

    async def litter(number: int) -> None:
        await add_blob(metadata, b"litter %d" % number)

    async def collect() -> None:
        while not done.is_set():
            await metadata.garbage.sweep()

    done = asyncio.Event()
    collecting = asyncio.ensure_future(collect())
    digests: list[str] = []
    for number in range(25):
        digest, _ = await asyncio.gather(bring(number), litter(number))
        digests.append(digest)
    done.set()
    await collecting
    assert await _blobs(metadata) == set(digests)
    for digest in digests:
        assert await metadata.content.read_blob(SCOPE, digest)


async def test_a_big_heap_is_swept_in_pieces(metadata: Metadata) -> None:
    def fill(connection: object) -> None:
        connection.executemany(  # type: ignore[attr-defined]
            "INSERT INTO blobs VALUES ('test', ?, 1, x'7b7d', 0, 0, 0)",
            [(f"sha256:{number:064x}",) for number in range(1500)],
        )

    await metadata.database.write(fill)
    assert await metadata.garbage.sweep() == 1500
    assert metadata.database.read(lambda c: c.execute("SELECT * FROM removals").fetchall()) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456_789),
        ("1970-01-01 00:00:01Z", None),
        ("1970-01-01", None),
        ("1970-13-01T00:00:01Z", None),
        ("", None),
    ],
)
def test_expiry(value: str, expected: int | None) -> None:
    assert references.expiry({PREFIX + "expire": value}, "it") == expected


async def test_what_lives_under_a_lease_ends_with_it(metadata: Metadata) -> None:
    class Streams:
        def __init__(self) -> None:
            self.held = {Scope("test", "l"), Scope("test", "kept"), Scope("other", "l")}

        def leases(self) -> set[Scope]:
            return set(self.held)

        async def expire(self, scope: Scope) -> None:
            self.held.discard(scope)

    streams = Streams()
    metadata.garbage.attach(streams)
    for namespace, id in (("test", "l"), ("test", "kept"), ("other", "l")):
        await metadata.leases.create(namespace, Lease(id))
    await metadata.garbage.sweep()
    assert len(streams.held) == 3
    await metadata.leases.delete("test", "l", sync=True)
    assert streams.held == {Scope("test", "kept"), Scope("other", "l")}
    past = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}
    await metadata.leases.create("test", Lease("short", labels=past))
    streams.held.add(Scope("test", "short"))
    await metadata.garbage.sweep()
    assert Scope("test", "short") not in streams.held
