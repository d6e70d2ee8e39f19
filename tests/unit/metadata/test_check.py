"""The check over real stores: each kind of damage is found, and put right, and found no more."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from supervisord.contracts.checks import Finding, Options
from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.errors import NotFound
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Kind
from supervisord.contracts.typed import TypedValue
from supervisord.metadata.check_blobs import child_labels
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, MemorySnapshotter, Recorder, add_blob, opened

SPEC = TypedValue("spec", b"{}")
NONE: Sequence[tuple[str, str, bool]] = []


async def run(
    metadata: Metadata, *, repair: bool = False, quick: bool = False
) -> list[tuple[str, str, bool]]:
    """Kinds and problems of what is found, and whether it was repaired."""
    reports = metadata.checker.check(Options(quick, repair, "adopted"))
    return [
        (each.kind, each.problem, each.repaired)
        async for each in reports
        if isinstance(each, Finding)
    ]


async def repaired(metadata: Metadata, *expected: tuple[str, str]) -> None:
    """These are found, repaired, and found no more."""
    assert await run(metadata) == [(*each, False) for each in expected]
    assert await run(metadata, repair=True) == [(*each, True) for each in expected]
    assert await run(metadata) == NONE


def file_of(metadata: Metadata, digest: str) -> Path:
    return metadata._parts.files.blob_path(digest)


async def change(metadata: Metadata, statement: str, *values: object) -> None:
    """Damages a row behind the stores' back."""
    work = metadata.database.write(lambda c: c.execute(statement, values).rowcount)
    assert await work == 1


async def test_nothing_is_found_where_nothing_is_wrong(metadata: Metadata) -> None:
    digest = await add_blob(
        metadata, b"{}", {"containerd.io/gc.ref.content.x": "sha256:" + "0" * 64}
    )
    await metadata.images.create("test", Image("i", Descriptor("m", digest, 2)))
    await metadata.snapshots["memory"].prepare(SCOPE, "a", "", {"containerd.io/gc.root": "1"})
    await metadata.snapshots["memory"].commit(SCOPE, "layer", "a", {})
    await metadata.snapshots["memory"].view(SCOPE, "v", "layer", {})
    writer = await metadata.content.writer(SCOPE, "half")
    await writer.write(b"half")
    assert await run(metadata) == NONE
    await writer.close()
    assert await run(metadata, repair=True) == NONE
    assert [info.name async for info in metadata.snapshots["memory"].walk(SCOPE)] == ["layer", "v"]


async def test_a_damaged_blob_is_set_aside_and_can_be_written_again(
    metadata: Metadata, events: Recorder
) -> None:
    digest = await add_blob(metadata, b"good")
    other = await add_blob(metadata, b"good", scope=Scope("other"))
    assert other == digest
    file = file_of(metadata, digest)
    file.chmod(0o600)
    file.write_bytes(b"evil")
    assert await run(metadata, quick=True) == NONE  # the size is right
    await repaired(metadata, ("blob", "damaged"))
    assert events.topics().count("/content/delete") == 2
    aside = metadata._parts.files.root / "quarantine" / digest.replace(":", "-")
    assert aside.read_bytes() == b"evil"
    with pytest.raises(NotFound):
        await metadata.content.info(SCOPE, digest)
    assert await add_blob(metadata, b"good", ref="again") == digest
    assert await metadata.content.read_blob(SCOPE, digest) == b"good"


async def test_new_bytes_replace_damaged_ones_of_the_same_size(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"good")
    file = file_of(metadata, digest)
    file.chmod(0o600)
    file.write_bytes(b"evil")
    await add_blob(metadata, b"good", scope=Scope("other"), ref="again")
    assert file.read_bytes() == b"good"
    assert await run(metadata) == NONE


async def test_a_blob_without_a_file_loses_its_record(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"gone")
    file_of(metadata, digest).unlink()
    assert await run(metadata, quick=True) == [("blob", "missing", False)]
    await repaired(metadata, ("blob", "missing"))
    await add_blob(metadata, b"gone", ref="again")


async def test_a_wrong_size_is_corrected_where_the_digest_is_right(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"four")
    await change(metadata, "UPDATE blobs SET size = 5 WHERE digest = ?", digest)
    await repaired(metadata, ("blob", "size"))
    assert (await metadata.content.info(SCOPE, digest)).size == 4


async def test_a_truncated_blob_is_found_by_its_size_alone(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"four")
    file = file_of(metadata, digest)
    file.chmod(0o600)
    file.write_bytes(b"")
    assert await run(metadata, quick=True) == [("blob", "size", False)]
    assert await run(metadata, quick=True, repair=True) == [("blob", "damaged", True)]
    assert await run(metadata) == NONE


async def test_blobs_that_lost_their_records_get_them_again(metadata: Metadata) -> None:
    config, layer = await add_blob(metadata, b"{}"), await add_blob(metadata, b"layer")
    manifest = json.dumps(
        {"config": {"digest": config}, "layers": [{"digest": layer}, {"digest": 7}]}
    ).encode()
    top = await add_blob(metadata, manifest)
    await metadata.database.write(lambda c: c.execute("DELETE FROM blobs"))
    await repaired(metadata, *[("blob", "orphan")] * 3)
    await metadata.garbage.sweep()
    info = await metadata.content.info(Scope("adopted"), top)
    assert set(info.labels.values()) == {config, layer}
    await metadata.leases.delete("adopted", "recovered")
    assert sum((await metadata.garbage.sweep()).records.values()) == 3


async def test_ingests(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"shared")
    writer = await metadata.content.writer(Scope("other"), "standing", expected=digest)
    await writer.close()
    orphan = metadata._parts.files.ingest_path(1)
    orphan.write_bytes(b"rubbish")
    metadata._numbers.first = 5  # as if an earlier process had given it out
    await metadata.content.delete(SCOPE, digest)
    await metadata._parts.removals.drain()
    file_of(metadata, digest).unlink()  # which the ingest had kept
    await repaired(metadata, ("ingest", "orphan"), ("ingest", "missing"))
    assert not orphan.exists()


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"[1]", b"", b'{"a": 1}'])
async def test_labels_are_made_again(metadata: Metadata, damage: bytes) -> None:
    labels = {
        "containerd.io/gc.ref.content.0": "sha256:" + "1" * 64,
        "containerd.io/gc.root": "now",
    }
    digest = await add_blob(metadata, b"x", labels)
    await metadata.leases.create("test", Lease("l", labels={"containerd.io/gc.flat": "yes"}))
    for table in ("blobs", "leases", "namespaces"):
        await change(metadata, f"UPDATE {table} SET labels = ?", damage)  # noqa: S608
    assert [info async for info in metadata.content.walk(SCOPE)] == []  # left out, not fatal
    await repaired(metadata, *[("record", "damaged")] * 3)
    info = await metadata.content.info(SCOPE, digest)
    assert info.labels["containerd.io/gc.ref.content.0"] == "sha256:" + "1" * 64
    assert "containerd.io/gc.root" in info.labels
    assert "containerd.io/gc.flat" in metadata.leases.get("test", "l").labels


async def test_a_damaged_container_is_told_and_left_to_its_owner(metadata: Metadata) -> None:
    for id in ("a", "b"):
        await metadata.containers.create("test", Container(id, runtime=Runtime("r"), spec=SPEC))
    await change(metadata, "UPDATE containers SET record = x'ffff' WHERE id = 'a'")
    assert [each.id for each in metadata.containers.list("test")] == ["b"]
    assert len(metadata.containers.records("test", [])) == 1  # what goes over the wire
    assert await run(metadata, repair=True) == [("record", "damaged", False)]
    await metadata.containers.delete("test", "a")
    assert await run(metadata) == NONE


async def test_lost_edges_are_derived_anew(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"x")
    await metadata.images.create("test", Image("i", Descriptor("m", digest, 1)))
    store = metadata.snapshots["memory"]
    await store.prepare(SCOPE, "a", "", {})
    await store.commit(SCOPE, "layer", "a", {})
    await store.prepare(SCOPE, "rw", "layer", {})
    await metadata.containers.create(
        "test",
        Container("c", runtime=Runtime("r"), spec=SPEC, snapshotter="memory", snapshot_key="rw"),
    )
    await metadata.database.write(lambda c: c.execute("DELETE FROM refs"))
    await repaired(metadata, *[("edge", "missing")] * 3)
    assert not (await metadata.garbage.sweep()).records


# Snapshots ---------------------------------------------------------------------------------


async def _layers(metadata: Metadata) -> None:
    store = metadata.snapshots["memory"]
    await store.prepare(SCOPE, "a", "", {})
    await store.commit(SCOPE, "one", "a", {})
    await store.prepare(SCOPE, "b", "one", {})
    await store.commit(SCOPE, "two", "b", {})
    await store.prepare(SCOPE, "rw", "two", {})


async def test_rows_of_snapshots_that_are_gone_are_dropped(
    metadata: Metadata, backend: MemorySnapshotter
) -> None:
    await _layers(metadata)
    backend.snapshots.clear()
    await repaired(metadata, *[("snapshot", "missing")] * 3)
    await _layers(metadata)


async def test_snapshots_that_lost_their_rows_get_them_again(
    metadata: Metadata, backend: MemorySnapshotter
) -> None:
    await _layers(metadata)
    before = {row async for row in _names(metadata)}
    await metadata.database.write(lambda c: c.execute("DELETE FROM snapshots"))
    metadata._numbers.first = 1 << 30  # all are of an earlier process
    await repaired(metadata, *[("snapshot", "orphan")] * 3)
    assert {row async for row in _names(metadata)} == before
    await metadata.garbage.sweep()
    assert {row async for row in _names(metadata)} == before  # the lease holds them
    backend.snapshots["somebody's"] = backend.snapshots.popitem()[1]
    found = await run(metadata)
    assert ("snapshot", "orphan", False) not in found  # not of our making


async def _names(metadata: Metadata) -> AsyncIterator[tuple[str, str, Kind]]:
    async for info in metadata.snapshots["memory"].walk(SCOPE):
        yield info.name, info.parent, info.kind


async def test_a_wrong_parent_is_corrected(metadata: Metadata) -> None:
    await _layers(metadata)
    await change(metadata, "UPDATE snapshots SET parent = 'one' WHERE key = 'rw'")
    found = await run(metadata)
    assert ("snapshot", "parent", False) in found
    await run(metadata, repair=True)
    assert await run(metadata) == NONE
    assert (await metadata.snapshots["memory"].stat(SCOPE, "rw")).parent == "two"


# A new database over what is there -----------------------------------------------------------


async def test_a_lost_database_does_not_cost_the_blobs(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    first = await opened(tmp_path, events, backend)
    digest = await add_blob(first, b"precious")
    await _layers(first)
    await first.close()
    for file in (tmp_path / "metadata").glob("metadata.db*"):
        file.unlink()
    for _ in range(2):  # it is remembered
        second = await opened(tmp_path, events, backend)
        await second.recover()
        assert file_of(second, digest).exists()
        assert len(backend.snapshots) == 3
        await second.close()
    third = await opened(tmp_path, events, backend)
    third._numbers.first = 1 << 30
    found = await run(third, repair=True)
    assert found.count(("blob", "orphan", True)) == 1
    assert found.count(("snapshot", "orphan", True)) == 3
    await third.recover()
    assert await third.content.read_blob(Scope("adopted"), digest) == b"precious"
    assert (await third.snapshots["memory"].stat(SCOPE, "rw")).parent == "two"
    await third.close()


async def test_a_backup_is_whole_while_others_write(metadata: Metadata, tmp_path: Path) -> None:
    digests = [await add_blob(metadata, bytes([number])) for number in range(5)]
    copies = await metadata.checker.backup(tmp_path)
    assert [each.path.name for each in copies] == ["metadata.db"]
    await metadata.content.delete(SCOPE, digests[0])
    connection = sqlite3.connect(copies[0].copy)
    try:
        kept = {digest for (digest,) in connection.execute("SELECT digest FROM blobs")}
        assert kept == set(digests)
    finally:
        connection.close()


def test_what_a_manifest_names() -> None:
    digest = "sha256:" + hashlib.sha256(b"").hexdigest()
    index = {"manifests": [{"digest": digest}, {}, 7], "layers": "none", "config": []}
    assert child_labels(index) == {"containerd.io/gc.ref.content.m.0": digest}
    assert child_labels([1]) == {}  # type: ignore[arg-type]
