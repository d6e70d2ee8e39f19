"""Sandbox records: rules, updates, filters, collection, and the database of an older release."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from protos.containerd.types import types_pb2
from supervisord.contracts.containers import Runtime
from supervisord.contracts.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.namespaces import Namespace
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.typed import TypedValue
from supervisord.metadata.schema import MIGRATIONS
from supervisord.metadata.store import Metadata

from .conftest import MemorySnapshotter, Recorder, add_blob, opened

OLD = Path(__file__).parent / "old" / "v1.sql"
POD = Sandbox(
    "pod",
    Runtime("io.containerd.runc.v2", TypedValue("url/3", b"\4\5")),
    TypedValue("1", b"\1\2"),
    {"a": "1", "none": ""},
    {"ext": TypedValue("url/1", b"\1"), "empty": TypedValue()},
    "shim",
)


async def test_a_record_is_kept_whole(metadata: Metadata) -> None:
    store = metadata.sandboxes
    made = await store.create("test", POD)
    assert made == replace(
        POD, labels={"a": "1"}, created_at=made.created_at, updated_at=made.created_at
    )
    assert made.created_at > 0
    assert store.get("test", "pod") == made
    message = types_pb2.Sandbox.FromString(store.record("test", "pod"))
    assert (message.sandbox_id, message.sandboxer) == ("pod", "shim")
    with pytest.raises(AlreadyExists, match='"pod"'):
        await store.create("test", POD)
    with pytest.raises(NotFound):
        store.get("other", "pod")
    await store.create("other", Sandbox("pod"))
    await store.delete("test", "pod")
    with pytest.raises(NotFound, match='"pod"'):
        await store.delete("test", "pod")
    assert store.records("test") == []
    assert len(store.records("other")) == 1


@pytest.mark.parametrize(
    ("sandbox", "field"),
    [
        (Sandbox(""), "sandbox_id"),
        (Sandbox("a/b"), "sandbox_id"),
        (Sandbox("a", extensions={"": TypedValue("x", b"")}), "extensions"),
        (Sandbox("a", labels={"x": "y" * 4096}), "labels"),
    ],
)
async def test_what_is_refused(metadata: Metadata, sandbox: Sandbox, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await metadata.sandboxes.create("test", sandbox)


async def test_updates(metadata: Metadata) -> None:
    store = metadata.sandboxes
    made = await store.create("test", POD)
    wanted = Sandbox(
        "pod",
        labels={"a": "new", "b": "2"},
        spec=TypedValue("2", b"\3"),
        extensions={"more": TypedValue("url/2", b"\2")},
    )
    paths = ("labels.a", "extensions.more", "extensions.ext", "spec")
    changed = await store.update("test", wanted, paths)
    assert changed.labels == {"a": "new"}
    assert changed.extensions == {"empty": TypedValue(), "more": TypedValue("url/2", b"\2")}
    assert (changed.spec, changed.runtime, changed.sandboxer) == (wanted.spec, POD.runtime, "shim")
    assert changed.created_at == made.created_at < changed.updated_at
    assert store.get("test", "pod") == changed

    with pytest.raises(InvalidArgument, match="immutable"):
        await store.update("test", replace(wanted, runtime=Runtime("other")), ())
    whole = await store.update("test", replace(wanted, runtime=Runtime(POD.runtime.name)), ())
    assert (whole.labels, whole.extensions) == (wanted.labels, wanted.extensions)
    assert whole.runtime == Runtime(POD.runtime.name)
    renamed = await store.update("test", Sandbox("pod", Runtime("other")), ["runtime"])
    assert renamed.runtime == Runtime("other")
    for path in ("sandboxer", "id", "created_at", ""):
        with pytest.raises(InvalidArgument, match="cannot update"):
            await store.update("test", wanted, [path])
    with pytest.raises(NotFound):
        await store.update("test", Sandbox("none"), ["spec"])


async def test_filters(metadata: Metadata) -> None:
    for id, label in (("2", "b"), ("1", "a"), ("3", "b")):
        await metadata.sandboxes.create("test", Sandbox(id, labels={"test.x": label}))

    def ids(*filters: str) -> list[str]:
        found = metadata.sandboxes.records("test", filters)
        return [types_pb2.Sandbox.FromString(record).sandbox_id for record in found]

    assert ids() == ["1", "2", "3"]
    assert ids("id==2") == ["2"]
    assert ids('labels."test.x"==b') == ["2", "3"]
    assert ids("id==1", "id==3") == ["1", "3"]
    assert ids("runtime.name==x") == []
    with pytest.raises(InvalidArgument):
        ids("id===")


async def test_a_sandbox_keeps_what_its_labels_name(metadata: Metadata) -> None:
    digest = await add_blob(metadata, b"kept")
    label = {"containerd.io/gc.ref.content": digest}
    await metadata.sandboxes.create("test", Sandbox("pod", labels=label))
    assert not (await metadata.garbage.sweep()).count
    await metadata.sandboxes.delete("test", "pod")
    assert (await metadata.garbage.sweep()).count == 1


async def test_a_namespace_with_a_sandbox_stays(metadata: Metadata) -> None:
    await metadata.sandboxes.create("test", Sandbox("pod"))
    with pytest.raises(FailedPrecondition, match="still has sandboxes"):
        await metadata.namespaces.delete("test")
    await metadata.sandboxes.delete("test", "pod")
    await metadata.namespaces.delete("test")


async def test_the_database_of_the_first_release(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> None:
    (tmp_path / "metadata").mkdir()
    path = tmp_path / "metadata" / "metadata.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(OLD.read_text())
    stores = await opened(tmp_path, events, backend)
    try:
        assert [n.name for n in stores.namespaces.list()] == ["test"]
        assert stores.namespaces.get("test") == Namespace("test", {"k": "v"})
        assert [c.id for c in stores.containers.list("test")] == ["web"]
        assert [lease.id for lease in stores.leases.list("test")] == ["l"]
        assert len(stores.leases.list_resources("test", "l")) == 1
        await stores.sandboxes.create("test", POD)
    finally:
        await stores.close()
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert new.execute("SELECT namespace, id FROM sandboxes").fetchall() == [("test", "pod")]
