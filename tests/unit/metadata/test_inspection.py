"""What a collection would take, and what keeps a thing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from supervisord.contracts.collectible import Collectible
from supervisord.contracts.content import Info
from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.contracts.garbage import Doomed, Explanation
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease, Resource
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.scope import Scope
from supervisord.metadata import references
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, add_blob
from .test_garbage import PREFIX, Mounts, _at, _chain
from .test_records import WEB

SECOND = 1_000_000_000


async def _preview(stores: Metadata, namespace: str = "") -> list[Doomed]:
    return [doomed async for part in stores.inspection.preview(namespace) for doomed in part]


async def _why(stores: Metadata, id: str, type: str = "") -> Explanation:
    (explanation,) = await stores.inspection.explain("test", id, type)
    return explanation


def _ways(explanation: Explanation) -> list[list[tuple[str, str]]]:
    """The chains from their roots, as keys with reasons."""
    return [[(link.id, link.reason) for link in chain.links] for chain in explanation.chains]


async def test_what_would_go(metadata: Metadata) -> None:
    other = Scope("other")
    alone = await add_blob(metadata, b"alone")
    shared = await add_blob(metadata, b"shared")
    await add_blob(metadata, b"shared", {PREFIX + "root": "1"}, other)
    twice = await add_blob(metadata, b"twice")
    await add_blob(metadata, b"twice", {}, other)
    await add_blob(metadata, b"kept", {PREFIX + "root": "1"})
    await metadata.snapshots["memory"].prepare(SCOPE, "s", "", {})
    past = {PREFIX + "expire": _at(-5)}
    await metadata.leases.create("test", Lease("l", labels=past))
    writer = await metadata.content.writer(SCOPE, "half")
    await writer.write(b"half")
    await writer.close()
    await metadata.database.write(lambda c: c.execute("UPDATE ingests SET expires_at = 1"))
    metadata.garbage.attach(Mounts(Collectible("test", "m")))
    expected = [
        Doomed("other", "content", twice, 5),
        *sorted(
            [
                Doomed("test", "content", alone, 5),
                Doomed("test", "content", shared, 0),
                Doomed("test", "content", twice, 0),
            ],
            key=lambda doomed: doomed.id,
        ),
        Doomed("test", "ingests", "half", 4),
        Doomed("test", "leases", "l"),
        Doomed("test", "mount", "m"),
        Doomed("test", "snapshots/memory", "s", 4096),
    ]
    assert await _preview(metadata) == expected
    assert [one.id for one in await _preview(metadata, "other")] == [twice]
    swept = await metadata.garbage.sweep()
    assert swept.count == len(expected)
    assert await _preview(metadata) == []


async def test_ways_down_from_roots(metadata: Metadata) -> None:
    await _chain(metadata, "one", "two", "three")
    layer = await add_blob(metadata, b"layer", {PREFIX + "root": "now"})
    manifest = await add_blob(
        metadata,
        b"manifest",
        {PREFIX + "ref.content.l.0": layer, PREFIX + "ref.snapshot.memory/x": "two"},
    )
    await metadata.images.create("test", Image("i", Descriptor("t", manifest, 8)))
    container = replace(WEB, snapshotter="memory", snapshot_key="three")
    await metadata.containers.create("test", container)
    by_container = [("web", "a container"), ("three", "root filesystem"), ("two", "parent")]
    by_image = [("i", "an image"), (manifest, "target"), ("two", f"{PREFIX}ref.snapshot.memory/x")]
    why = await _why(metadata, "one")
    assert (why.type, why.more, why.until) == ("snapshots/memory", 0, None)
    assert sorted(_ways(why)) == sorted(
        [[*by_container, ("one", "parent")], [*by_image, ("one", "parent")]]
    )
    why = await _why(metadata, layer)
    assert _ways(why) == [
        [(layer, PREFIX + "root")],
        [("i", "an image"), (manifest, "target"), (layer, f"{PREFIX}ref.content.l.0")],
    ]
    await metadata.images.delete("test", "i")
    await metadata.containers.delete("test", "web")
    assert _ways(await _why(metadata, "one")) == []
    assert _ways(await _why(metadata, layer)) == [[(layer, PREFIX + "root")]]


async def test_leases_and_when_they_end(metadata: Metadata) -> None:
    layer = await add_blob(metadata, b"layer", {PREFIX + "root": "1"})
    manifest = await add_blob(metadata, b"manifest", {PREFIX + "ref.content": layer})
    held = Resource("content", manifest)
    soon, later = {PREFIX + "expire": _at(60)}, {PREFIX + "expire": _at(120)}
    flat = {PREFIX + "expire": _at(300), PREFIX + "flat": "1"}
    past = {PREFIX + "expire": _at(-60)}
    for id, labels in (("soon", soon), ("later", later), ("flat", flat), ("past", past)):
        await metadata.leases.create("test", Lease(id, labels=labels))
        await metadata.leases.add_resource("test", id, held)
    await metadata.content.update(SCOPE, Info(layer, labels={}), [])
    why = await _why(metadata, manifest)
    assert {way[0][0] for way in _ways(why)} == {"soon", "later", "flat"}
    assert why.until == references.expiry(flat, "")
    why = await _why(metadata, layer)
    assert {way[0][0] for way in _ways(why)} == {"soon", "later"}
    assert all(way[1:] == [(manifest, "held"), (layer, f"{PREFIX}ref.content")] for way in
               _ways(why))  # fmt: skip
    assert why.until == references.expiry(later, "")
    assert _ways(await _why(metadata, "past")) == []
    (chain,) = (await _why(metadata, "soon")).chains
    assert (chain.links[0].reason, chain.until) == ("a lease", references.expiry(soon, ""))
    await metadata.leases.create("test", Lease("ever"))
    await metadata.leases.add_resource("test", "ever", held)
    assert (await _why(metadata, manifest)).until is None


async def test_other_ways(metadata: Metadata) -> None:
    """Back references, conditions, ingests, sandboxes, and what is outside."""
    blob = await add_blob(metadata, b"blob", {PREFIX + "bref.container": "web"})
    await metadata.containers.create("test", WEB)
    assert _ways(await _why(metadata, blob)) == [
        [("web", "a container"), (blob, PREFIX + "bref.container")]
    ]
    await metadata.sandboxes.create("test", Sandbox("pod", labels={PREFIX + "ref.image": "i"}))
    labels = {PREFIX + "expire": _at(-60)}
    await metadata.images.create("test", Image("i", Descriptor("t", blob, 4), labels))
    assert _ways(await _why(metadata, "i")) == [[("pod", "a sandbox"), ("i", f"{PREFIX}ref.image")]]
    used = {PREFIX + "cond.value-usedat": _at(-60)}
    await metadata.snapshots["memory"].prepare(SCOPE, "s", "", used)
    condition = {PREFIX + "cond.snapshot.memory": "usedat<1h|s"}
    keeper = await add_blob(metadata, b"keeper", {PREFIX + "root": "1", **condition})
    assert _ways(await _why(metadata, "s")) == [
        [(keeper, PREFIX + "root"), ("s", f"{PREFIX}cond.snapshot.memory=usedat<1h|s")]
    ]
    resources = (
        Collectible("test", "busy", {PREFIX + "ref.content": blob}, active=True),
        Collectible("test", "idle", lease="l"),
        Collectible("other", "elsewhere", active=True),
    )
    metadata.garbage.attach(Mounts(*resources))
    assert [("busy", "in use"), (blob, PREFIX + "ref.content")] in _ways(await _why(metadata, blob))
    assert _ways(await _why(metadata, "idle")) == []
    await metadata.leases.create("test", Lease("l"))
    assert _ways(await _why(metadata, "idle", "mount")) == [[("l", "a lease"), ("idle", "held")]]
    writer = await metadata.content.writer(SCOPE, "ref")
    assert _ways(await _why(metadata, "ref")) == [[("ref", "being written")]]
    await writer.close()
    why = await _why(metadata, "ref")
    assert _ways(why) == [[("ref", "half-written")]]
    assert why.until is not None
    assert abs(why.until - time.time_ns() - 86400 * SECOND) < 60 * SECOND


async def test_many_roots(metadata: Metadata) -> None:
    blob = await add_blob(metadata, b"blob", {PREFIX + "root": "1"})
    for number in range(30):
        await metadata.images.create("test", Image(f"i{number}", Descriptor("t", blob, 4)))
    why = await _why(metadata, blob)
    assert len(why.chains) + why.more == 31
    assert 1 < why.more < 31


async def test_names(metadata: Metadata) -> None:
    """Things are found by whole names of any type, and by the beginnings of digests."""
    blob = await add_blob(metadata, b"blob", {PREFIX + "root": "1"})
    await add_blob(metadata, b"blob", {PREFIX + "root": "1"}, Scope("other"))
    await metadata.snapshots["memory"].prepare(SCOPE, "web", "", {})
    await metadata.snapshots["memory"].prepare(SCOPE, f"sha256:{'1' * 64}", "", {})
    await metadata.containers.create("test", WEB)
    found = await metadata.inspection.explain("test", "web")
    assert [one.type for one in found] == ["containers", "snapshots/memory"]
    assert (await _why(metadata, "web", "snapshots")).type == "snapshots/memory"
    assert (await _why(metadata, "web", "snapshots/memory")).type == "snapshots/memory"
    for part in (blob, blob[:15], blob[7:15]):
        assert (await _why(metadata, part)).id == blob
    assert (await _why(metadata, blob)).shared_with == ["other"]
    assert (await _why(metadata, "1111")).id == f"sha256:{'1' * 64}"
    await metadata.snapshots["memory"].prepare(SCOPE, f"sha256:{'1' * 63}2", "", {})
    with pytest.raises(InvalidArgument, match="beginning of 2"):
        await _why(metadata, "1111")
    for missing in ("we", "sha256:", "xyz", blob[7:10], "%"):
        with pytest.raises(NotFound, match="nothing"):
            await _why(metadata, missing)
    with pytest.raises(NotFound, match="images web"):
        await _why(metadata, "web", "images")
    with pytest.raises(InvalidArgument):
        await _why(metadata, "")


async def test_a_damaged_record_hides_only_its_reasons(metadata: Metadata) -> None:
    layer = await add_blob(metadata, b"layer", {PREFIX + "root": "1"})
    manifest = await add_blob(metadata, b"manifest", {PREFIX + "ref.content": layer})
    await metadata.images.create("test", Image("i", Descriptor("t", manifest, 8)))
    await metadata.database.write(lambda c: c.execute("UPDATE blobs SET labels = x'00', root = 0"))
    (way,) = _ways(await _why(metadata, layer))
    assert [key for key, _ in way] == ["i", manifest, layer]


async def test_everything_is_explained_as_it_is_swept(metadata: Metadata) -> None:
    """What is kept has a way down from a root, and what would go has none."""
    await _chain(metadata, "one", "two", "three")
    blobs: Sequence[str] = [
        await add_blob(metadata, b"%d" % number, {PREFIX + "ref.snapshot.memory": name})
        for number, name in enumerate(("one", "two", "none"))
    ]
    await metadata.images.create("test", Image("i", Descriptor("t", blobs[1], 1)))
    doomed = {one.id for one in await _preview(metadata)}
    assert doomed == {blobs[0], blobs[2], "three"}
    for thing in (*blobs, "one", "two", "three", "i"):
        assert bool((await _why(metadata, thing)).chains) is (thing not in doomed)
