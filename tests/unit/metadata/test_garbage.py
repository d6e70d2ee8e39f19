"""What garbage collection keeps and what it takes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from supervisord.contracts.collectible import Collectible
from supervisord.contracts.content import Info
from supervisord.contracts.errors import NotFound
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease, Resource
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info as SnapshotInfo
from supervisord.metadata import conditions, content_rows, marking, references
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
    assert (await metadata.garbage.sweep()).records == {"content": 1500}
    assert metadata.database.read(lambda c: c.execute("SELECT * FROM removals").fetchall()) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456_789),
        ("2901-02-03T04:05:06Z", (1 << 63) - 1),
        ("0001-01-01T00:00:00Z", 1 - (1 << 63)),
        ("1970-01-01 00:00:01Z", None),
        ("1970-01-01", None),
        ("1970-13-01T00:00:01Z", None),
        ("", None),
    ],
)
def test_expiry(value: str, expected: int | None) -> None:
    assert references.expiry({PREFIX + "expire": value}, "it") == expected


class Mounts:
    """Resources in memory, of which one cannot be collected."""

    kind = "mount"

    def __init__(self, *resources: Collectible) -> None:
        self.held = {resource.key: resource for resource in resources}

    def resources(self) -> list[Collectible]:
        return list(self.held.values())

    async def collect(self, resource: Collectible) -> None:
        if resource.key == "stuck":
            raise OSError("busy")
        del self.held[resource.key]


async def test_what_lives_outside_takes_part(metadata: Metadata) -> None:
    kept = await add_blob(metadata, b"kept", {PREFIX + "root": "1"})
    mounts = Mounts(
        Collectible("test", "leased", lease="l"),
        Collectible("other", "leased elsewhere", lease="l"),
        Collectible("test", "active", active=True),
        Collectible("test", "of a blob"),
        Collectible("test", "of an image", {PREFIX + "bref.image": "i"}),
        Collectible("test", "of nobody", {PREFIX + "bref.container.x": "gone"}),
        Collectible("test", "stuck"),
    )
    metadata.garbage.attach(mounts)
    with pytest.raises(ValueError, match="attached"):
        metadata.garbage.attach(mounts)
    await metadata.content.update(SCOPE, Info(kept, labels={
        PREFIX + "root": "1", PREFIX + "ref.mount.x": "of a blob"
    }), [])  # fmt: skip
    await metadata.images.create("test", Image("i", Descriptor("t", kept, 4)))
    await metadata.leases.create("test", Lease("l"))
    swept = await metadata.garbage.sweep()
    assert swept.records == {"mount": 3}
    assert set(mounts.held) == {"leased", "active", "of a blob", "of an image", "stuck"}
    await metadata.images.delete("test", "i")
    await metadata.content.update(SCOPE, Info(kept, labels={PREFIX + "root": "1"}), [])
    past = {PREFIX + "expire": "2001-01-01T00:00:00Z"}
    await metadata.leases.delete("test", "l", sync=True)
    assert set(mounts.held) == {"active", "stuck"}
    await metadata.leases.create("test", Lease("short", labels=past))
    mounts.held["late"] = Collectible("test", "late", lease="short")
    await metadata.garbage.sweep()
    assert set(mounts.held) == {"active", "stuck"}


async def test_what_lives_outside_keeps_what_it_names(metadata: Metadata) -> None:
    await metadata.leases.create("test", Lease("l"))
    await metadata.leases.create("test", Lease("flat", labels={PREFIX + "flat": "1"}))
    mounts = Mounts()
    metadata.garbage.attach(mounts)
    digests = []
    for name in ("l", "flat", ""):
        digests.append(await add_blob(metadata, name.encode() or b"none", scope=Scope("test", "l")))
        mounts.held[name] = Collectible("test", name, {PREFIX + "ref.content": digests[-1]}, name)
    held = Resource("content", digests[2])
    await metadata.leases.delete_resource("test", "l", held)
    assert await _blobs(metadata) == set(digests[:2])
    assert set(mounts.held) == {"l", "flat"}


async def test_conditions(metadata: Metadata) -> None:
    """A snapshot that was used lately is kept by what asks for that, and by nothing else."""
    store = metadata.snapshots["memory"]
    for name, ago in (("recent", -3600), ("old", -3 * 3600), ("never", None), ("odd", -1)):
        used = {} if ago is None else {PREFIX + "cond.value-usedat": _at(ago)}
        await store.prepare(SCOPE, name, "", {PREFIX + "root": "1", **used})
    conditions = {
        PREFIX + "cond.snapshot.memory": "usedat<2h|recent",
        PREFIX + "cond.snapshot.memory/1": "usedat<30m,usedat>2h30m|old",
        PREFIX + "cond.snapshot.memory/2": "usedat<100h|never",
        PREFIX + "cond.snapshot.memory/3": "usedat<=100h,size<3,usedat<soon|odd",
    }
    keeper = await add_blob(metadata, b"keeper", {PREFIX + "root": "1", **conditions})
    for name in ("recent", "old", "never", "odd"):
        await store.update(SCOPE, replace(await store.stat(SCOPE, name), labels={}),
                           [f"labels.{PREFIX}root"])  # fmt: skip
    assert await _snapshots(metadata) == {"recent", "old"}
    await metadata.content.update(SCOPE, Info(keeper, labels={PREFIX + "root": "1"}), [])
    assert await _snapshots(metadata) == set()


async def test_an_image_can_have_conditions_too(metadata: Metadata) -> None:
    used = {PREFIX + "cond.value-usedat": _at(-60), PREFIX + "root": "1"}
    await metadata.snapshots["memory"].prepare(SCOPE, "s", "", used)
    blob = await add_blob(metadata, b"blob", {PREFIX + "root": "1"})
    condition = {PREFIX + "cond.snapshot.memory": "usedat<1h|s"}
    await metadata.images.create("test", Image("i", Descriptor("t", blob, 4), condition))
    del used[PREFIX + "root"]
    await metadata.snapshots["memory"].update(SCOPE, SnapshotInfo("s", labels=used), ["labels"])
    assert await _snapshots(metadata) == {"s"}
    await metadata.images.delete("test", "i")
    assert await _snapshots(metadata) == set()


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ("usedat<1h30m|k", [5_400_000_000_000]),
        ("usedat>1.5s|k", [1_500_000_000]),
        ("usedat>2\u00b5s,usedat<-1ns|k|l", [2000, -1]),
        ("usedat<0|k", [0]),
        ("usedat<1|k", []),
        ("usedat<|k", []),
        ("usedat==1h|k", []),
        ("usedat<1h", []),
    ],
)
def test_conditions_parse(value: str, spans: list[int]) -> None:
    node = references.Node("content", "d")
    found = list(conditions.rows(node, {PREFIX + "cond.snapshot.s": value}))
    assert [row.value for row in found] == spans
    assert {row.kind for row in found} <= {"snapshots/s"}


async def test_a_flat_lease_keeps_the_blob_of_an_ingest_whole(metadata: Metadata) -> None:
    other = Scope("other")
    layer = await add_blob(metadata, b"layer", {PREFIX + "root": "1"})
    shared = await add_blob(metadata, b"shared", {PREFIX + "root": "1"}, other)
    await metadata.leases.create("test", Lease("flat", labels={PREFIX + "flat": "1"}))
    writer = await metadata.content.writer(Scope("test", "flat"), "ref", expected=shared)
    await writer.close()
    labels = {PREFIX + "root": "1", PREFIX + "ref.content": layer}
    await add_blob(metadata, b"shared", labels)
    for digest in (shared, layer):
        await metadata.content.update(SCOPE, Info(digest, labels={}), [f"labels.{PREFIX}root"])
    assert await _blobs(metadata) == {layer, shared}


async def test_garbage_that_is_wanted_again_while_it_goes(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Big garbage goes in pieces, what refers first: a survivor still has all that it needs."""
    blobs = [f"sha256:{number:064x}" for number in range(3 * marking.PIECE)]

    def fill(connection: sqlite3.Connection) -> None:
        for digest, target in zip(blobs, [*blobs[1:], blobs[0]], strict=True):
            content_rows.insert(
                connection, "test", digest, 1,
                {PREFIX + "ref.content": target} if target != blobs[0] else {},
            )  # fmt: skip

    await metadata.database.write(fill)
    saved = len(blobs) // 2

    async def after_a_piece(*_: object) -> None:
        monkeypatch.undo()
        assert len(await _listed(metadata)) == 2 * marking.PIECE
        await metadata.leases.create("test", Lease("l"))
        await metadata.leases.add_resource("test", "l", Resource("content", blobs[saved]))

    monkeypatch.setattr(metadata.garbage, "_end", after_a_piece)
    await metadata.garbage.sweep()
    assert await _listed(metadata) == blobs[saved:]


async def _listed(metadata: Metadata) -> list[str]:
    return [info.digest async for info in metadata.content.walk(SCOPE)]


async def test_pieces(metadata: Metadata) -> None:
    """Whatever the order they were found in; a cycle is one piece."""

    def fill(connection: sqlite3.Connection) -> list[list[marking.Found]]:
        for number in range(2 * marking.PIECE):
            target = number + 1 if number % 3 else number - 2
            digest, other = f"sha256:{number:064x}", f"sha256:{target % 999:064x}"
            content_rows.insert(connection, "test", digest, 1, {PREFIX + "ref.content": other})
        return marking.in_pieces(
            connection, marking.garbage(connection, time.time_ns(), marking.Outside())
        )

    pieces = await metadata.database.write(fill)
    assert sum(map(len, pieces)) == 2 * marking.PIECE
    place = {found: number for number, piece in enumerate(pieces) for found in piece}

    def check(connection: sqlite3.Connection) -> None:
        for kind, key, to_kind, to_key in connection.execute(
            "SELECT kind, key, to_kind, to_key FROM refs"
        ):
            source = place[marking.Found("test", kind, key)]
            assert source <= place[marking.Found("test", to_kind, to_key)]

    metadata.database.read(check)


async def _collected_before_the_next_write(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection comes between what a request has read and what it writes."""
    commits = metadata._parts.commits
    write = commits.write

    async def later(work: Any, *, deleted: bool = False) -> Any:
        monkeypatch.undo()
        await metadata.garbage.sweep()
        return await write(work, deleted=deleted)

    monkeypatch.setattr(commits, "write", later)


async def test_a_blob_that_goes_while_a_lease_takes_it(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await add_blob(metadata, b"blob")
    await metadata.leases.create("test", Lease("l"))
    await _collected_before_the_next_write(metadata, monkeypatch)
    writer = await metadata.content.writer(Scope("test", "l"), "ref", expected=digest)
    await writer.write(b"blob")
    await writer.commit(4, digest, {})
    await writer.close()
    assert await _blobs(metadata) == {digest}


async def test_a_snapshot_that_goes_while_a_lease_takes_it(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scope = metadata.snapshots["memory"], Scope("test", "l")
    await metadata.leases.create("test", Lease("l"))
    await store.prepare(SCOPE, "s", "", {})
    await _collected_before_the_next_write(metadata, monkeypatch)
    await store.prepare(scope, "s", "", {})
    assert await _snapshots(metadata) == {"s"}


async def test_a_commit_under_a_lease_that_is_gone_changes_nothing(metadata: Metadata) -> None:
    store = metadata.snapshots["memory"]
    await store.prepare(SCOPE, "s", "", {PREFIX + "root": "1"})
    with pytest.raises(NotFound, match="lease"):
        await store.commit(Scope("test", "gone"), "c", "s", {})
    assert await _snapshots(metadata) == {"s"}
    await store.commit(SCOPE, "other", "s", {PREFIX + "root": "1"})
    assert await _snapshots(metadata) == {"other"}


@pytest.mark.parametrize("what", ["unrelated", "edge", "root", "lease", "gone"])
async def test_writes_beside_a_mark_have_it_repeated_only_if_they_concern_it(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    garbage = await add_blob(metadata, b"garbage", {PREFIX + "x": "y"})
    other = await add_blob(metadata, b"other")
    await metadata.leases.create("test", Lease("L"))
    marks = []
    mark, pieces = marking.garbage, metadata.garbage._pieces

    def counted(*arguments: Any) -> list[marking.Found]:
        marks.append(arguments)
        return mark(*arguments)

    async def meanwhile() -> None:
        match what:
            case "unrelated":
                await metadata.containers.create("test", WEB)
            case "edge":
                labels = {PREFIX + "ref.content": garbage, PREFIX + "ref.content.1": other}
                await metadata.containers.create("test", replace(WEB, labels=labels))
            case "root":
                for each in (garbage, other):
                    info = Info(each, labels={PREFIX + "root": "1"})
                    await metadata.content.update(SCOPE, info, [])
            case "lease":
                for each in (garbage, other):
                    await metadata.leases.add_resource("test", "L", Resource("content", each))
            case "gone":
                await metadata.content.delete(SCOPE, other)

    loop = asyncio.get_running_loop()

    def then_written(beside: marking.Outside) -> list[list[marking.Found]]:
        found = pieces(beside)
        asyncio.run_coroutine_threadsafe(meanwhile(), loop).result(10)
        return found

    monkeypatch.setattr("supervisord.metadata.garbage.garbage", counted)
    monkeypatch.setattr(metadata.garbage, "_pieces", then_written)
    await metadata.garbage.sweep()
    left = {info.digest async for info in metadata.content.walk(SCOPE)}
    assert left == (set() if what in ("unrelated", "gone") else {garbage, other})
    assert len(marks) == (1 if what == "unrelated" else 2)
