"""Snapshots by namespace: keys, labels, life story, and commits that a crash cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from protos.containerd.events import events_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info, Kind, Mount
from supervisord.metadata.store import Metadata

from .conftest import SCOPE, MemorySnapshotter, Recorder, opened

OTHER = Scope("other")


async def test_the_life_of_a_snapshot(
    metadata: Metadata, backend: MemorySnapshotter, events: Recorder
) -> None:
    store = metadata.snapshots["memory"]
    labels = {"containerd.io/snapshot/x": "1", "containerd.io/gc.root": "now", "mine": "2"}
    mounts = await store.prepare(SCOPE, "active", "", labels)
    [key] = backend.snapshots
    assert key.startswith("test/") and key.endswith("/active")
    assert mounts[0].source == f"/snapshots/{key}"
    assert dict(backend.snapshots[key].labels) == {"containerd.io/snapshot/x": "1"}
    info = await store.stat(SCOPE, "active")
    assert (info.name, info.kind, dict(info.labels)) == ("active", Kind.ACTIVE, labels)
    assert (await store.usage(SCOPE, "active")).size == 4096
    assert await store.mounts(SCOPE, "active") == mounts
    with pytest.raises(AlreadyExists, match='snapshot "active": already exists'):
        await store.prepare(SCOPE, "active", "", {})
    await store.prepare(OTHER, "active", "", {})
    await store.commit(SCOPE, "layer", "active", {"containerd.io/snapshot.ref": "r"})
    with pytest.raises(NotFound, match="snapshot active does not exist"):
        await store.stat(SCOPE, "active")
    assert (await store.stat(SCOPE, "layer")).kind is Kind.COMMITTED
    await store.view(SCOPE, "child", "layer", {})
    assert (await store.stat(SCOPE, "child")).parent == "layer"
    with pytest.raises(FailedPrecondition, match="with child"):
        await store.remove(SCOPE, "layer")
    with pytest.raises(NotFound, match="parent snapshot none"):
        await store.prepare(SCOPE, "x", "none", {})
    await store.remove(SCOPE, "child")
    await store.remove(SCOPE, "layer")
    await metadata.garbage.sweep()
    assert [name.split("/")[0] for name in backend.snapshots] == []
    assert events.topics() == [
        "/snapshot/prepare",
        "/snapshot/prepare",
        "/snapshot/commit",
        "/snapshot/remove",
        "/snapshot/remove",
        "/snapshot/remove",  # the other namespace's, by the sweep
    ]
    assert events.events[2][2] == events_pb2.SnapshotCommit(
        key="active", name="layer", snapshotter="memory"
    )


async def test_updates_and_walks(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    for number in range(12):
        await store.prepare(SCOPE, f"s{number:02}", "", {"n": str(number)})
    await store.prepare(OTHER, "elsewhere", "", {})
    names = [info.name async for info in store.walk(SCOPE)]
    assert names == [f"s{number:02}" for number in range(12)]
    found = [info.name async for info in store.walk(SCOPE, ["labels.n==3", "name==s05"])]
    assert found == ["s03", "s05"]
    assert [i.name async for i in store.walk(SCOPE, ["kind==committed"])] == []
    assert len([i async for i in store.walk(SCOPE, ['kind==active,parent==""'])]) == 12
    assert [i.name async for i in store.walk(OTHER)] == ["elsewhere"]
    updated = await store.update(
        SCOPE,
        Info("s01", labels={"n": "", "new": "1", "containerd.io/snapshot/y": "2"}),
        ["labels.n", "labels.new"],
    )
    assert dict(updated.labels) == {"new": "1"}
    updated = await store.update(
        SCOPE, Info("s01", labels={"containerd.io/snapshot/y": "2", "z": "3"}), ["labels"]
    )
    assert dict(updated.labels) == {"containerd.io/snapshot/y": "2", "z": "3"}
    key = next(key for key in backend.snapshots if key.endswith("/s01"))
    assert dict(backend.snapshots[key].labels) == {"containerd.io/snapshot/y": "2"}
    with pytest.raises(InvalidArgument):
        await store.update(SCOPE, Info("s01"), ["parent"])
    with pytest.raises(NotFound):
        await store.update(SCOPE, Info("none"), [])
    await backend.remove(key)  # lost by the backend: not listed, not fatal
    assert "s01" not in [info.name async for info in store.walk(SCOPE)]


async def test_a_parent_given_at_commit(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    await store.prepare(SCOPE, "upper", "", {})
    await store.prepare(SCOPE, "lower", "", {})
    with pytest.raises(NotFound, match="parent snapshot base"):
        await store.commit(SCOPE, "top", "upper", {}, "base")
    await store.commit(SCOPE, "base", "lower", {})
    await store.commit(SCOPE, "top", "upper", {}, "base")
    assert (await store.stat(SCOPE, "top")).parent == "base"
    with pytest.raises(FailedPrecondition):
        await store.remove(SCOPE, "base")
    await metadata.garbage.sweep()
    assert backend.snapshots == {}


async def test_a_remote_snapshot_is_adopted(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    backend.offers["sha256:chain"] = "remote/thing"
    labels = {"containerd.io/snapshot.ref": "sha256:chain", "containerd.io/gc.root": "1"}
    with pytest.raises(AlreadyExists, match="target snapshot"):
        await store.prepare(SCOPE, "key", "", labels)
    info = await store.stat(SCOPE, "sha256:chain")
    assert info.kind is Kind.COMMITTED
    with pytest.raises(NotFound):
        await store.stat(SCOPE, "key")
    with pytest.raises(AlreadyExists):
        await store.prepare(SCOPE, "other", "", labels)
    await store.prepare(SCOPE, "child", "sha256:chain", {})
    assert backend.snapshots[next(k for k in backend.snapshots if "child" in k)].parent == (
        "remote/thing"
    )


@pytest.mark.parametrize("kind", [DeadlineExceeded, Unavailable])
async def test_what_was_made_behind_an_error_goes(
    metadata: Metadata, backend: MemorySnapshotter, kind: type[Error]
) -> None:
    """The answer of a snapshotter in another process may be lost, or come too late."""
    store = metadata.snapshots["memory"]
    prepare = backend.prepare

    async def late(key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        await prepare(key, parent, labels)
        raise kind("no answer")

    backend.prepare = late  # type: ignore[method-assign]
    with pytest.raises(kind, match="no answer"):
        await store.prepare(SCOPE, "key", "", {})
    await store.cleanup(SCOPE)
    assert backend.snapshots == {}
    backend.prepare = prepare  # type: ignore[method-assign]
    assert await store.prepare(SCOPE, "key", "", {})


async def test_leases_hold_snapshots(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    await metadata.leases.create("test", Lease("L"))
    leased = Scope("test", "L")
    await store.prepare(leased, "k", "", {})
    await store.commit(leased, "n", "k", {})
    held = [(r.type, r.id) for r in metadata.leases.list_resources("test", "L")]
    assert held == [("snapshots/memory", "n")]
    await metadata.garbage.sweep()
    assert (await store.stat(SCOPE, "n")).kind is Kind.COMMITTED
    with pytest.raises(NotFound, match="lease"):
        await store.prepare(Scope("test", "none"), "x", "", {})
    assert len(backend.snapshots) == 1
    await metadata.leases.delete("test", "L", sync=True)
    assert backend.snapshots == {}


async def test_a_commit_cut_off_by_a_crash_is_completed(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    stores = await opened(tmp_path, events, backend)
    await stores.snapshots["memory"].prepare(SCOPE, "k", "", {"containerd.io/gc.root": "1"})
    await stores.snapshots["memory"].prepare(SCOPE, "gone", "", {})
    [key, gone] = backend.snapshots
    # The backend has committed; the daemon died before its row.
    await backend.commit(key.replace("/k", "/n"), key, {})
    await stores.database.write(lambda c: c.execute("DELETE FROM snapshots WHERE key = 'gone'"))
    await stores.close()
    stores = await opened(tmp_path, events, backend)
    await stores.recover()
    assert list(backend.snapshots) == [key.replace("/k", "/n")]
    assert gone not in backend.snapshots
    await stores.snapshots["memory"].commit(SCOPE, "n", "k", {"containerd.io/gc.root": "1"})
    assert (await stores.snapshots["memory"].stat(SCOPE, "n")).kind is Kind.COMMITTED
    await stores.garbage.sweep()
    assert list(backend.snapshots) == [key.replace("/k", "/n")]
    await stores.close()


async def test_a_failed_row_leaves_no_snapshot(
    metadata: Metadata, backend: MemorySnapshotter
) -> None:
    store = metadata.snapshots["memory"]
    with pytest.raises(NotFound):
        await store.prepare(Scope("test", "nolease"), "k", "", {})
    assert backend.snapshots == {}
    await store.prepare(SCOPE, "k", "", {})


async def test_a_cancelled_prepare_is_whole(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    task = asyncio.ensure_future(store.prepare(SCOPE, "k", "", {}))
    await asyncio.sleep(0.0005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(AlreadyExists):
        await store.prepare(SCOPE, "k", "", {})
    assert len(backend.snapshots) == 1


async def test_concurrent_use_of_one_key(metadata: Metadata, backend: MemorySnapshotter) -> None:
    store = metadata.snapshots["memory"]
    results = await asyncio.gather(
        *(store.prepare(SCOPE, "k", "", {}) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, AlreadyExists) for result in results) == 9
    commits = await asyncio.gather(
        *(store.commit(SCOPE, f"n{i}", "k", {}) for i in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, NotFound) for result in commits) == 4
    assert len(backend.snapshots) == 1


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 32769])
async def test_bad_keys(metadata: Metadata, key: str) -> None:
    store = metadata.snapshots["memory"]
    with pytest.raises(InvalidArgument, match="key"):
        await store.prepare(SCOPE, key, "", {})
    with pytest.raises(InvalidArgument, match="name"):
        await store.commit(SCOPE, key, "k", {})
    with pytest.raises(InvalidArgument, match="labels"):
        await store.prepare(SCOPE, "k", "", {"k": "v" * 4096})


async def test_refusals_of_the_backend_name_the_clients_keys(
    metadata: Metadata, backend: MemorySnapshotter
) -> None:
    store = metadata.snapshots["memory"]
    await store.prepare(SCOPE, "active", "", {})
    with pytest.raises(FailedPrecondition, match=r"^parent active is not committed$"):
        await store.prepare(SCOPE, "child", "active", {})
    with pytest.raises(FailedPrecondition, match=r"^parent active is not committed$"):
        await store.view(SCOPE, "child", "active", {})
    await store.prepare(SCOPE, "lower", "", {})
    await store.commit(SCOPE, "base", "lower", {})
    with pytest.raises(FailedPrecondition, match=r"^snapshot base is committed$"):
        await store.mounts(SCOPE, "base")
    with pytest.raises(FailedPrecondition, match=r"^snapshot base is not active$"):
        await store.commit(SCOPE, "other", "base", {})
    backend.snapshots.clear()
    for lost in (
        store.stat(SCOPE, "active"),
        store.usage(SCOPE, "active"),
        store.mounts(SCOPE, "active"),
        store.update(SCOPE, Info("active", labels={"a": "b"}), ["labels"]),
    ):
        with pytest.raises(NotFound, match=r"^snapshot active: not found$"):
            await lost
