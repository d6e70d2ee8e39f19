"""Content: ingests, blobs, namespaces, and what a crash or a full disk leaves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protos.containerd.events import events_pb2
from supervisord.contracts.content import Info
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, MemorySnapshotter, Recorder, add_blob, opened

OTHER = Scope("other")


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def test_a_blob_is_written_and_read(metadata: Metadata, events: Recorder) -> None:
    content = metadata.content
    data = bytes(range(256)) * 20_000
    writer = await content.writer(SCOPE, "one", total=len(data), expected=sha(data))
    for at in range(0, len(data), 1 << 20):
        await writer.write(data[at : at + (1 << 20)])
    assert writer.digest() == sha(data)
    assert writer.status.offset == len(data)
    info = await writer.commit(len(data), sha(data), {"a": "b", "empty": ""})
    await writer.close()
    assert (info.digest, info.size, dict(info.labels)) == (sha(data), len(data), {"a": "b"})
    assert await content.info(SCOPE, sha(data)) == info
    assert await content.read_blob(SCOPE, sha(data)) == data
    reader = await content.reader(SCOPE, sha(data))
    assert reader.size == len(data)
    assert await reader.read(5, 3) == data[5:8]
    assert await reader.read(len(data), 3) == b""
    assert await reader.read(len(data) - 2, 30) == data[-2:]
    await content.delete(SCOPE, sha(data))
    assert await reader.read(0, 10) == data[:10]
    reader.close()
    with pytest.raises(NotFound):
        await content.info(SCOPE, sha(data))
    assert events.topics() == ["/content/create", "/content/delete"]
    with pytest.raises(NotFound):
        await content.status(SCOPE, "one")


async def test_a_mismatch_keeps_the_ingest(metadata: Metadata) -> None:
    content = metadata.content
    writer = await content.writer(SCOPE, "r")
    await writer.write(b"abc")
    with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
        await writer.commit(0, sha(b"abd"), {})
    with pytest.raises(FailedPrecondition, match="size validation: 3 != 4"):
        await writer.commit(4, "", {})
    with pytest.raises(InvalidArgument):
        await writer.commit(0, "sha256:beef", {})
    with pytest.raises(InvalidArgument):
        await writer.commit(0, "", {"k": "v" * 5000})
    assert (await writer.commit(3, sha(b"abc"), {})).size == 3
    await writer.close()


async def test_a_ref_that_is_just_being_left(metadata: Metadata) -> None:
    content = metadata.content
    writer = await content.writer(SCOPE, "r")
    await writer.write(b"abc")
    next_one = asyncio.create_task(content.writer(SCOPE, "r"))
    await asyncio.sleep(0.02)
    assert not next_one.done()
    updated_at = writer.status.updated_at
    await writer.close()
    async with asyncio.timeout(5):
        writer = await next_one
    assert writer.status.offset == 3
    assert writer.status.updated_at == updated_at, "that of the last write, not of the opening"
    await writer.close()
    assert (await content.status(SCOPE, "r")).updated_at == updated_at


async def test_an_ingest_is_locked_and_resumed(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    writer = await stores.content.writer(SCOPE, "r", total=6)
    await writer.write(b"abc")
    with pytest.raises(Unavailable, match="locked"):
        await stores.content.writer(SCOPE, "r")
    other = await stores.content.writer(OTHER, "r")
    await other.close()
    await writer.close()
    with pytest.raises(FailedPrecondition):
        await writer.write(b"x")
    await stores.close()

    stores = await opened(tmp_path, events, backend)
    await stores.recover()
    status = await stores.content.status(SCOPE, "r")
    assert (status.offset, status.total) == (3, 6)
    assert [s.ref for s in await stores.content.statuses(SCOPE, ["ref~=^r$"])] == ["r"]
    assert await stores.content.statuses(SCOPE, ["ref==x"]) == []
    writer = await stores.content.writer(SCOPE, "r", total=6)
    assert writer.status.offset == 3
    assert writer.status.started_at == status.started_at
    assert writer.digest() == sha(b"abc")
    await writer.write(b"def")
    await writer.commit(6, sha(b"abcdef"), {})
    await writer.close()
    assert await stores.content.read_blob(SCOPE, sha(b"abcdef")) == b"abcdef"
    await stores.close()
    assert list((tmp_path / "content" / "ingest").iterdir()) != []  # the other namespace's


async def test_another_total_starts_over(metadata: Metadata) -> None:
    writer = await metadata.content.writer(SCOPE, "r", total=6)
    await writer.write(b"abc")
    await writer.close()
    writer = await metadata.content.writer(SCOPE, "r", total=7)
    assert writer.status.offset == 0
    await writer.close()


async def test_truncate(metadata: Metadata) -> None:
    writer = await metadata.content.writer(SCOPE, "r")
    await writer.write(b"abcdef")
    await writer.truncate(2)
    assert (writer.status.offset, writer.digest()) == (2, sha(b"ab"))
    await writer.write(b"X")
    with pytest.raises(FailedPrecondition):
        await writer.truncate(4)
    await writer.commit(3, sha(b"abX"), {})
    await writer.close()
    assert await metadata.content.read_blob(SCOPE, sha(b"abX")) == b"abX"


async def test_other_algorithms(metadata: Metadata) -> None:
    wanted = "sha512:" + hashlib.sha512(b"abc").hexdigest()
    writer = await metadata.content.writer(SCOPE, "known", expected=wanted)
    await writer.write(b"abc")
    assert (await writer.commit(0, wanted, {})).digest == wanted
    await writer.close()
    wanted = "sha384:" + hashlib.sha384(b"abcd").hexdigest()
    writer = await metadata.content.writer(SCOPE, "late")
    await writer.write(b"abcd")
    assert (await writer.commit(0, wanted, {})).digest == wanted
    await writer.close()
    assert await metadata.content.read_blob(SCOPE, wanted) == b"abcd"


async def test_an_existing_blob(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"abc")
    with pytest.raises(AlreadyExists):
        await metadata.content.writer(SCOPE, "again", expected=digest)
    writer = await metadata.content.writer(SCOPE, "again")
    await writer.write(b"abc")
    with pytest.raises(AlreadyExists):
        await writer.commit(0, digest, {})
    await writer.close()
    assert await metadata.content.statuses(SCOPE) == []
    assert await metadata.content.read_blob(SCOPE, digest) == b"abc"


async def test_a_blob_is_shared_by_namespaces(metadata: Metadata, tmp_path: Path) -> None:
    content = metadata.content
    digest = await add_blob(metadata, b"shared")
    with pytest.raises(NotFound):
        await content.info(OTHER, digest)
    with pytest.raises(NotFound):
        await content.reader(OTHER, digest)
    writer = await content.writer(OTHER, "r", total=6, expected=digest)
    assert (writer.status.offset, writer.digest()) == (6, digest)
    assert (await content.status(OTHER, "r")).expected == digest
    await writer.commit(6, digest, {"mine": "yes"})
    await writer.close()
    await content.delete(SCOPE, digest)
    await metadata.garbage.sweep()
    assert not (tmp_path / "content" / "blobs" / "sha256" / digest[7:]).exists()


async def test_a_shared_blob_that_is_written_to_is_copied(metadata: Metadata) -> None:
    content = metadata.content
    digest = await add_blob(metadata, b"shared")
    writer = await content.writer(OTHER, "r", expected=digest)
    await writer.write(b"!")
    assert writer.digest() == sha(b"shared!")
    await writer.commit(7, "", {})
    await writer.close()
    writer = await content.writer(OTHER, "s", expected=digest)
    await writer.truncate(0)
    await writer.write(b"new")
    await writer.commit(3, sha(b"new"), {})
    await writer.close()
    assert await content.read_blob(OTHER, sha(b"shared!")) == b"shared!"
    assert await content.read_blob(OTHER, sha(b"new")) == b"new"
    assert await content.read_blob(SCOPE, digest) == b"shared"
    assert [info.digest async for info in content.walk(OTHER)] == sorted(
        [sha(b"shared!"), sha(b"new")]
    )


async def test_a_waiting_shared_ingest_keeps_the_file(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"kept")
    writer = await metadata.content.writer(OTHER, "r", expected=digest)
    await metadata.content.delete(SCOPE, digest)
    await metadata.garbage.sweep()
    await writer.commit(0, digest, {})
    await writer.close()
    assert await metadata.content.read_blob(OTHER, digest) == b"kept"


async def test_isolated(tmp_path: Path, events: Recorder, backend: MemorySnapshotter) -> None:
    stores = await opened(tmp_path, events, backend, isolated=True)
    digest = await add_blob(stores, b"mine")
    writer = await stores.content.writer(OTHER, "r", expected=digest)
    assert writer.status.offset == 0
    await writer.write(b"mine")
    await writer.commit(4, digest, {})
    await writer.close()
    namespace = replace(
        stores.namespaces.get("test"), labels={"containerd.io/namespace.shareable": "true"}
    )
    await stores.namespaces.update(namespace, [])
    writer = await stores.content.writer(Scope("third"), "r", expected=digest)
    assert writer.status.offset == 4
    await writer.close()
    await stores.close()


async def test_walk_filters_and_updates(metadata: Metadata) -> None:
    content = metadata.content
    one = await add_blob(metadata, b"1", {"tier": "web", "keep": "x"})
    two = await add_blob(metadata, b"2")
    assert [i.digest async for i in content.walk(SCOPE)] == sorted([one, two])
    assert [i.digest async for i in content.walk(SCOPE, ["labels.tier==web"])] == [one]
    assert [i.digest async for i in content.walk(SCOPE, [f"digest=={two}"])] == [two]
    with pytest.raises(InvalidArgument):
        [i async for i in content.walk(SCOPE, ["==="])]
    before = await content.info(SCOPE, one)
    updated = await content.update(SCOPE, Info(one, labels={"tier": ""}), ["labels.tier"])
    assert dict(updated.labels) == {"keep": "x"}
    assert updated.updated_at > before.updated_at
    assert updated.created_at == before.created_at
    updated = await content.update(SCOPE, Info(one, labels={"all": "new"}), [])
    assert dict((await content.info(SCOPE, one)).labels) == {"all": "new"}
    with pytest.raises(InvalidArgument, match='"size"'):
        await content.update(SCOPE, Info(one), ["size"])
    with pytest.raises(NotFound):
        await content.update(OTHER, Info(one), [])


async def test_abort(metadata: Metadata, tmp_path: Path) -> None:
    content = metadata.content
    writer = await content.writer(SCOPE, "r")
    await writer.write(b"abc")
    await content.abort(SCOPE, "r")
    with pytest.raises(FailedPrecondition):
        await writer.write(b"x")
    with pytest.raises(FailedPrecondition):
        await writer.commit(0, "", {})
    await writer.close()
    with pytest.raises(NotFound):
        await content.abort(SCOPE, "r")
    await metadata.garbage.sweep()
    assert list((tmp_path / "content" / "ingest").iterdir()) == []


async def test_bad_input(metadata: Metadata) -> None:
    content = metadata.content
    for ref in ("", "x" * 5000, "a\0b"):
        with pytest.raises(InvalidArgument, match="ref"):
            await content.writer(SCOPE, ref)
    with pytest.raises(InvalidArgument, match="total"):
        await content.writer(SCOPE, "r", total=-1)
    with pytest.raises(InvalidArgument, match="expected"):
        await content.writer(SCOPE, "r", expected="nonsense")
    with pytest.raises(NotFound, match="lease"):
        await content.writer(Scope("test", "nolease"), "r")
    assert await content.statuses(SCOPE) == []


async def test_a_big_blob_is_not_read_whole(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"x" * 100)
    with pytest.raises(ResourceExhausted):
        await metadata.content.read_blob(SCOPE, digest, limit=99)


async def test_many_writers_of_the_same_bytes(metadata: Metadata) -> None:
    async def one(number: int) -> str:
        try:
            return await add_blob(metadata, b"same" * 10_000, ref=f"r{number}")
        except AlreadyExists:
            return "exists"

    results = await asyncio.gather(*(one(number) for number in range(20)))
    assert results.count("exists") == 19
    assert await metadata.content.statuses(SCOPE) == []


async def test_a_cancelled_open_leaves_the_ref_unlocked(metadata: Metadata) -> None:
    for delay in (0, 0.0005, 0.001, 0.002):
        opening = asyncio.ensure_future(metadata.content.writer(SCOPE, "r"))
        await asyncio.sleep(delay)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await opening).close()
        for _ in range(200):
            await asyncio.sleep(0.005)
            with contextlib.suppress(Unavailable):
                await (await metadata.content.writer(SCOPE, "r")).close()
                break
        else:
            pytest.fail("the ref stays locked")
    assert not metadata.content.open_ingests()


async def test_recovery_removes_orphans(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    digest = await add_blob(stores, b"kept")
    await stores.close()
    blobs = tmp_path / "content" / "blobs" / "sha256"
    (blobs / ("0" * 64)).write_bytes(b"orphan")
    ingests = tmp_path / "content" / "ingest"
    (ingests / "7").write_bytes(b"orphan")
    (ingests / "999999999").write_bytes(b"not ours yet")
    stores = await opened(tmp_path, events, backend)
    await stores.recover()
    assert [path.name for path in blobs.iterdir()] == [digest[7:]]
    assert [path.name for path in ingests.iterdir()] == ["999999999"]
    await stores.close()


async def test_leases_hold_ingests_and_blobs(metadata: Metadata) -> None:
    await metadata.leases.create("test", Lease("L"))
    leased = Scope("test", "L")
    writer = await metadata.content.writer(leased, "r")
    assert [(r.type, r.id) for r in metadata.leases.list_resources("test", "L")] == [
        ("ingests", "r")
    ]
    await writer.write(b"held")
    digest = (await writer.commit(0, "", {})).digest
    await writer.close()
    assert [(r.type, r.id) for r in metadata.leases.list_resources("test", "L")] == [
        ("content", digest)
    ]
    await metadata.garbage.sweep()
    assert await metadata.content.read_blob(SCOPE, digest) == b"held"
    await metadata.leases.delete("test", "L", sync=True)
    with pytest.raises(NotFound):
        await metadata.content.info(SCOPE, digest)


async def test_the_event_tells_the_media_type(metadata: Metadata, events: Recorder) -> None:
    for ref, media_type in (("one", "application/x-layer"), ("two", "")):
        writer = await metadata.content.writer(SCOPE, ref, media_type=media_type)
        await writer.write(ref.encode())
        await writer.commit(3, "", {})
        await writer.close()
    told = [event for _, topic, event in events.events if topic == "/content/create"]
    assert told == [
        events_pb2.ContentCreate(digest=sha(b"one"), size=3, mediaType="application/x-layer"),
        events_pb2.ContentCreate(digest=sha(b"two"), size=3),
    ]


async def test_bytes_that_an_ingest_has_for_nothing_are_removed(
    metadata: Metadata, tmp_path: Path
) -> None:
    content, files = metadata.content, tmp_path / "content" / "ingest"
    digest = await add_blob(metadata, b"shared", {"containerd.io/gc.root": "1"})
    promises: dict[str, dict[str, Any]] = {
        "a": {"total": 9},
        "b": {"total": 6, "expected": digest},
    }
    for ref, promise in promises.items():
        writer = await content.writer(OTHER, ref, total=6 if ref == "b" else 3)
        await writer.write(b"xy")
        await writer.close()
        before = {path.name for path in files.iterdir()}
        writer = await content.writer(OTHER, ref, **promise)
        await writer.close()
        await metadata.garbage.sweep()
        assert not before & {path.name for path in files.iterdir()}, ref
        await content.abort(OTHER, ref)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB for the content."""
    mount = tmp_path / "content"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_a_copy_that_does_not_fit_is_told_and_can_be_tried_again(
    small_disk: Path, tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    digest = await add_blob(stores, bytes(300_000))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(600_000))
    writer = await stores.content.writer(OTHER, "r", expected=digest)
    with pytest.raises(ResourceExhausted, match="no space left"):
        await writer.write(b"!")
    assert (writer.status.offset, writer.digest()) == (300_000, digest)
    filler.unlink()
    await writer.write(b"!")
    assert (await writer.commit(300_001, "", {})).digest == sha(bytes(300_000) + b"!")
    await writer.close()
    await stores.close()


async def test_a_disk_without_room_for_a_file(
    small_disk: Path, tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    await asyncio.to_thread(remount, small_disk, "nr_inodes=9")
    held = [small_disk / str(number) for number in range(9)]
    with contextlib.suppress(OSError):
        for path in held:
            path.touch()
    with pytest.raises(ResourceExhausted, match="no space left"):
        await stores.content.writer(SCOPE, "r")
    for path in held:
        path.unlink(missing_ok=True)
    assert await add_blob(stores, b"data", ref="r") == sha(b"data")
    await stores.close()


async def test_a_blob_of_another_size_than_its_row_is_damaged(
    metadata: Metadata, tmp_path: Path
) -> None:
    digest = await add_blob(metadata, b"12345")
    path = tmp_path / "content" / "blobs" / "sha256" / digest[7:]
    path.write_bytes(b"123")
    with pytest.raises(DataLoss, match="3 bytes of 5"):
        await metadata.content.reader(SCOPE, digest)
    with pytest.raises(DataLoss, match=digest):
        await metadata.content.read_blob(SCOPE, digest)
    assert (await metadata.content.info(SCOPE, digest)).size == 5
    await metadata.content.delete(SCOPE, digest)


@pytest.mark.parametrize("end", ["abort", "write", "total", "namespace", "expire"])
async def test_a_blob_that_only_stood_for_an_ingest_goes_with_it(
    metadata: Metadata, tmp_path: Path, end: str
) -> None:
    content, name = metadata.content, sha(b"shared")
    digest = await add_blob(metadata, b"shared")
    writer = await content.writer(OTHER, "r", expected=digest)
    await content.delete(SCOPE, digest)
    await metadata.garbage.sweep()
    path = tmp_path / "content" / "blobs" / "sha256" / name[7:]
    assert path.exists(), "the ingest stands on it"
    if end == "write":
        await writer.write(b"!")
    await writer.close()
    if end == "abort":
        await content.abort(OTHER, "r")
    elif end == "total":
        await (await content.writer(OTHER, "r", total=1)).close()
    elif end == "namespace":
        await metadata.namespaces.delete("other")
    elif end == "expire":
        await metadata.database.write(
            lambda c: c.execute("UPDATE ingests SET expires_at = 1").rowcount
        )
    await metadata.garbage.sweep()
    assert not path.exists()


async def test_a_blob_that_came_back_and_went_again(metadata: Metadata) -> None:
    """Its file is noted twice before anybody has removed it."""
    digest = await add_blob(metadata, b"again")
    note = "INSERT INTO removals (kind, key) VALUES ('content', ?)"
    await metadata.database.write(lambda c: c.executemany(note, [(digest,), (digest,)]))
    await metadata.content.delete(SCOPE, digest)
    async with asyncio.timeout(5):
        await metadata._parts.removals.drain()
    left = metadata.database.read(lambda c: c.execute("SELECT * FROM removals").fetchall())
    assert left == []
    assert await add_blob(metadata, b"again") == digest
