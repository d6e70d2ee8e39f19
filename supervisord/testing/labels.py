"""What is told of snapshots, and changed on them: labels, times, filters, usage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.contracts.snapshots import Info, Kind, Snapshotter

from .base import LABELS, Base, aside
from .mounting import mounted_aside
from .trees import both, file, link

INHERITED = "containerd.io/snapshot/"
"""Labels below this one are those that the metadata layer hands on to a snapshotter."""

FILTERS: Sequence[tuple[Sequence[str], str]] = (
    ((), "a1 a2 c1 c2 v1 v2"),
    (("",), "a1 a2 c1 c2 v1 v2"),
    (("kind==active",), "a1 a2"),
    (("kind==view",), "v1 v2"),
    (("kind==committed",), "c1 c2"),
    (("kind!=committed",), "a1 a2 v1 v2"),
    (("name==a1", "name==c2"), "a1 c2"),
    (("name~=^.1$",), "a1 c1 v1"),
    (("parent==c2",), "a1 v1"),
    (('parent!=""',), "a1 c2 v1"),
    (("labels.l",), "a1 c2"),
    (("labels.l==2",), "c2"),
    (("labels.l~=[12]",), "a1 c2"),
    (("kind==active,labels.l",), "a1"),
    (("name==a1,labels.l==2",), ""),
    (('labels."containerd.io/x"==y',), "v2"),
    (('labels."containerd.io/x"==y', "kind==committed,parent==c1"), "c2 v2"),
)
"""Filters, and which of one of each (see ``make_one_of_each``) they find."""


@pytest.mark.asyncio
class Labels(Base):
    async def test_labels_are_kept(self, snapshotter: Snapshotter) -> None:
        labels = {**LABELS, f"{INHERITED}a": "b", "text": "ä ö, \"quoted\" = 'x'\n"}
        await snapshotter.prepare("key", "", labels)
        assert (await snapshotter.stat("key")).labels == labels
        await snapshotter.commit("name", "key", {**LABELS, "l": "1"})
        found = (await snapshotter.stat("name")).labels
        assert found == {**LABELS, "l": "1"}, "labels are replaced, not inherited"
        await snapshotter.view("view", "name", {**LABELS, "l": "2"})
        assert (await snapshotter.stat("view")).labels == {**LABELS, "l": "2"}

    async def test_update_changes_labels_and_nothing_else(self, snapshotter: Snapshotter) -> None:
        await self.make_one_of_each(snapshotter)
        for name in ("c1", "c2", "a1", "a2", "v1", "v2"):
            before = await snapshotter.stat(name)
            wanted = {**LABELS, "l1": "v1", "l2": "v2", "l3": "v3"}
            changed = Info(name, parent="nowhere", kind=Kind.UNKNOWN, labels=wanted)
            after = await snapshotter.update(changed, ())
            assert (after.name, after.parent, after.kind) == (name, before.parent, before.kind)
            assert after.created_at == before.created_at
            assert before.updated_at < after.updated_at <= time.time_ns()
            assert after.labels == wanted
            some = Info(name, labels={"l1": "updated", "l4": "v4"})
            after = await snapshotter.update(some, ("labels.l1", "labels.l2"))
            assert after.labels == {**LABELS, "l1": "updated", "l3": "v3"}
            after = await snapshotter.update(Info(name, labels={**LABELS, "l4": "v4"}), ("labels",))
            assert after.labels == {**LABELS, "l4": "v4"}
            assert await snapshotter.stat(name) == after

    async def test_a_label_with_dots_and_slashes_is_one(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("key", "", LABELS)
        key = f"{INHERITED}x.y/z"
        await snapshotter.update(Info("key", labels={key: "1"}), (f"labels.{key}",))
        assert (await snapshotter.stat("key")).labels == {**LABELS, key: "1"}
        await snapshotter.update(Info("key"), (f"labels.{key}",))
        assert (await snapshotter.stat("key")).labels == LABELS

    async def test_nothing_else_can_be_updated(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("key", "", LABELS)
        before = await snapshotter.stat("key")
        for path in ("parent", "kind", "name", "created_at", "nonsense", ""):
            wanted = Info("key", parent="nowhere", labels={**LABELS, "l": "1"})
            with pytest.raises(InvalidArgument):
                await snapshotter.update(wanted, ("labels.l", path))
        assert await snapshotter.stat("key") == before
        with pytest.raises(NotFound):
            await snapshotter.update(Info("nowhere", labels=LABELS), ())
        with pytest.raises(NotFound):
            await snapshotter.update(Info("nowhere", labels=LABELS), ("labels.l",))

    async def test_walk_filters(self, snapshotter: Snapshotter) -> None:
        await self.make_one_of_each(snapshotter)
        for name, labels in (
            ("a1", {"l": "1"}),
            ("c2", {"l": "2"}),
            ("v2", {"containerd.io/x": "y"}),
        ):
            await snapshotter.update(Info(name, labels={**LABELS, **labels}), ())
        for filters, expected in FILTERS:
            found = {info.name async for info in snapshotter.walk(filters)}
            assert found == set(expected.split()), filters

    async def test_each_is_told_once_however_many(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        names = {f"view-{number}" for number in range(120)}
        for name in names:
            await snapshotter.view(name, "base", LABELS)
        found = [info.name async for info in snapshotter.walk()]
        assert sorted(found) == sorted({*names, "base"})

    async def test_stat_and_remove_while_walking(self, snapshotter: Snapshotter) -> None:
        await self.make_one_of_each(snapshotter)
        async for info in snapshotter.walk():
            if info.kind in (Kind.ACTIVE, Kind.VIEW):
                assert await snapshotter.stat(info.name) == info
                await snapshotter.remove(info.name)
        assert {info.name async for info in snapshotter.walk()} == {"c1", "c2"}

    async def test_usage_grows_with_what_is_written(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        mounts = await snapshotter.prepare("key", "", LABELS)
        empty = await snapshotter.usage("key")
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            await aside(both(file("data", "x" * 1_000_000), link("data", "again")), root)
        full = await snapshotter.usage("key")
        assert full.inodes == empty.inodes + 1
        assert 1_000_000 <= full.size - empty.size < 1_100_000
        await snapshotter.commit("name", "key", LABELS)
        if self.commit_keeps_usage:
            assert await snapshotter.usage("name") == full
        with pytest.raises(NotFound):
            await snapshotter.usage("nowhere")
