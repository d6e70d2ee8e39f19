"""One suite for all snapshotters: the rules of ``contracts.snapshots.Snapshotter``, tried out.

A third party subclasses ``SnapshotterSuite``, gives it a fixture ``snapshotter`` (an open one over
an empty root) and inherits the tests. They mount what the snapshotter answers, so they need root.
The cases are those of containerd's own suite, plus rules that its storage tests state.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.snapshots import Info, Kind, Snapshotter

from .mounting import mounted
from .trees import Change, both, chown, contents, file, folder, link, remove, rename

LABELS = {"containerd.io/gc.root": "2020-01-01T00:00:00Z"}

on_mounts = pytest.mark.blocks("it mounts, and writes to the mounts")


class SnapshotterSuite:
    """Subclass it; see the module."""

    renames_lower_directories = True
    """Whether a directory of a parent can be renamed (overlayfs answers EXDEV)."""

    commit_keeps_usage = True
    """Whether a committed snapshot takes what it took when it was active (an image does not)."""

    many_layers = 128
    """How many layers one snapshot must be able to stand on."""

    _numbers = itertools.count(1)

    # Life story ----------------------------------------------------------------------------

    @on_mounts
    async def test_layers_build_on_each_other(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        first = both(
            file("foo", "foo\n", 0o777), folder("a"), folder("a/b"), folder("a/b/c", 0o700)
        )
        second = both(file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), remove("a/b"))
        names = await self.check_layers(snapshotter, tmp_path, first, second)
        infos = {info.name: info async for info in snapshotter.walk()}
        assert set(infos) == set(names)
        assert infos[names[1]].parent == names[0]
        assert infos[names[1]] == await snapshotter.stat(names[1])
        with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
            await snapshotter.remove(names[0])
        await snapshotter.remove(names[1])
        await snapshotter.remove(names[0])
        assert [info async for info in snapshotter.walk()] == []

    async def test_commit_takes_the_key_away(self, snapshotter: Snapshotter) -> None:
        before = time.time_ns()
        assert await snapshotter.prepare("key", "", LABELS)
        info = await snapshotter.stat("key")
        assert (info.name, info.parent, info.kind) == ("key", "", Kind.ACTIVE)
        assert info.labels == LABELS
        assert before <= info.created_at == info.updated_at <= time.time_ns()
        await snapshotter.commit("name", "key", {"l": "1"})
        info = await snapshotter.stat("name")
        assert (info.name, info.parent, info.kind) == ("name", "", Kind.COMMITTED)
        assert info.labels == {"l": "1"}, "labels are replaced, not inherited"
        with pytest.raises(NotFound):
            await snapshotter.stat("key")
        with pytest.raises(NotFound):
            await snapshotter.mounts("key")

    async def test_keys_and_names_share_one_space(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        await snapshotter.prepare("taken", "base", LABELS)
        for make in (snapshotter.prepare, snapshotter.view):
            for name in ("taken", "base"):
                with pytest.raises(AlreadyExists):
                    await make(name, "base", LABELS)
        with pytest.raises(AlreadyExists):
            await snapshotter.commit("base", "taken", LABELS)
        assert (await snapshotter.stat("taken")).kind == Kind.ACTIVE

    async def test_parents_are_committed(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("active", "", LABELS)
        for make in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(NotFound):
                await make("new", "nowhere", LABELS)
            with pytest.raises(InvalidArgument, match="not a committed"):
                await make("new", "active", LABELS)
        with pytest.raises(NotFound):
            await snapshotter.stat("new")

    async def test_only_active_ones_are_committed(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        await snapshotter.view("view", "base", LABELS)
        for key in ("base", "view"):
            with pytest.raises(FailedPrecondition, match="not active"):
                await snapshotter.commit("other", key, LABELS)
        with pytest.raises(NotFound):
            await snapshotter.commit("other", "nowhere", LABELS)

    async def test_only_active_ones_and_views_have_mounts(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        with pytest.raises(FailedPrecondition):
            await snapshotter.mounts("base")
        for make, key in ((snapshotter.prepare, "active"), (snapshotter.view, "view")):
            assert await make(key, "base", LABELS) == await snapshotter.mounts(key)

    async def test_removed_names_are_free(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "name")
        await snapshotter.prepare("key", "name", LABELS)
        await snapshotter.remove("key")
        await snapshotter.view("key", "name", LABELS)
        await snapshotter.remove("key")
        await snapshotter.prepare("key", "", LABELS)
        await snapshotter.remove("name")
        await snapshotter.commit("name", "key", LABELS)
        with pytest.raises(NotFound):
            await snapshotter.remove("key")

    async def test_an_intermediate_layer_stays(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        await self.commit_empty(snapshotter, "middle", "base")
        await snapshotter.prepare("top", "middle", LABELS)
        for name in ("middle", "base"):
            with pytest.raises(FailedPrecondition):
                await snapshotter.remove(name)
        for name in ("top", "middle", "base"):
            await snapshotter.remove(name)

    async def test_update_changes_labels_and_nothing_else(self, snapshotter: Snapshotter) -> None:
        await self.make_one_of_each(snapshotter)
        for name in ("c1", "c2", "a1", "a2", "v1", "v2"):
            before = await snapshotter.stat(name)
            wanted = {"l1": "v1", "l2": "v2", "l3": "v3"}
            changed = Info(name, parent="nowhere", kind=Kind.UNKNOWN, labels=wanted)
            after = await snapshotter.update(changed, ())
            assert (after.parent, after.kind) == (before.parent, before.kind)
            assert after.created_at == before.created_at
            assert before.updated_at < after.updated_at <= time.time_ns()
            assert after.labels == wanted
            some = Info(name, labels={"l1": "updated", "l4": "v4"})
            after = await snapshotter.update(some, ("labels.l1", "labels.l2"))
            assert after.labels == {"l1": "updated", "l3": "v3"}
            after = await snapshotter.update(Info(name, labels={"l4": "v4"}), ("labels",))
            assert after.labels == {"l4": "v4"}
            with pytest.raises(InvalidArgument, match="parent"):
                await snapshotter.update(changed, ("parent",))
            assert await snapshotter.stat(name) == after
        with pytest.raises(NotFound):
            await snapshotter.update(Info("nowhere"), ())

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ((), "a1 a2 c1 c2 v1 v2"),
            (("kind==active",), "a1 a2"),
            (("kind==view",), "v1 v2"),
            (("kind==committed",), "c1 c2"),
            (("name==a1", "name==c2"), "a1 c2"),
            (("parent==c2",), "a1 v1"),
            (('parent!=""',), "a1 c2 v1"),
            (("labels.l",), "a1 c2"),
            (("labels.l==2",), "c2"),
            (("kind==active,labels.l",), "a1"),
            (('labels."containerd.io/x"==y',), "v2"),
        ],
    )
    async def test_walk_filters(
        self, snapshotter: Snapshotter, filters: Sequence[str], expected: str
    ) -> None:
        await self.make_one_of_each(snapshotter)
        for name, labels in (
            ("a1", {"l": "1"}),
            ("c2", {"l": "2"}),
            ("v2", {"containerd.io/x": "y"}),
        ):
            await snapshotter.update(Info(name, labels=labels), ())
        found = {info.name async for info in snapshotter.walk(filters)}
        assert found == set(expected.split())

    async def test_stat_and_remove_while_walking(self, snapshotter: Snapshotter) -> None:
        await self.make_one_of_each(snapshotter)
        async for info in snapshotter.walk():
            if info.kind in (Kind.ACTIVE, Kind.VIEW):
                assert await snapshotter.stat(info.name) == info
                await snapshotter.remove(info.name)
        assert {info.name async for info in snapshotter.walk()} == {"c1", "c2"}

    async def test_malformed_filters_are_refused(self, snapshotter: Snapshotter) -> None:
        with pytest.raises(InvalidArgument):
            [info async for info in snapshotter.walk(('name=="',))]

    async def test_one_of_many_wins_a_name(self, snapshotter: Snapshotter) -> None:
        tries = [snapshotter.prepare("key", "", LABELS) for _ in range(8)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        failures = [each for each in results if isinstance(each, Exception)]
        assert len(failures) == 7
        assert all(isinstance(each, AlreadyExists) for each in failures)

    @on_mounts
    async def test_usage_grows_with_what_is_written(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        mounts = await snapshotter.prepare("key", "", LABELS)
        empty = await snapshotter.usage("key")
        with mounted(mounts, tmp_path / "mnt") as root:
            (root / "data").write_bytes(b"x" * 1_000_000)
            link("data", "again")(root)
        full = await snapshotter.usage("key")
        assert full.inodes == empty.inodes + 1
        assert 1_000_000 <= full.size - empty.size < 1_100_000
        await snapshotter.commit("name", "key", LABELS)
        if self.commit_keeps_usage:
            assert await snapshotter.usage("name") == full
        with pytest.raises(NotFound):
            await snapshotter.usage("key")

    async def test_close_twice(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "name")
        await snapshotter.remove("name")
        await snapshotter.close()
        await snapshotter.close()
        with pytest.raises(Error):
            await snapshotter.prepare("key", "", LABELS)

    # What is seen through the mounts ---------------------------------------------------------

    @on_mounts
    async def test_views_are_read_only(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.commit_empty(snapshotter, "one")
        await self.commit_empty(snapshotter, "two", "one")
        for parent in ("", "one", "two"):
            mounts = await snapshotter.view(f"view-{parent}", parent, LABELS)
            with mounted(mounts, tmp_path / f"mnt-{parent}") as root, pytest.raises(OSError):
                (root / "file").write_text("no")

    @on_mounts
    async def test_root_has_mode_755(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        with mounted(await snapshotter.prepare("key", "", LABELS), tmp_path / "mnt") as root:
            assert root.stat().st_mode & 0o7777 == 0o755

    @on_mounts
    async def test_root_keeps_owner_and_mode(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        with mounted(await snapshotter.prepare("key", "", LABELS), tmp_path / "mnt") as root:
            chown(".", 12, 34)(root)
            root.chmod(0o750)
        await snapshotter.commit("name", "key", LABELS)
        mounts = await snapshotter.prepare("child", "name", LABELS)
        with mounted(mounts, tmp_path / "mnt") as root:
            found = root.stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o750)

    @on_mounts
    async def test_files_are_updated(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                folder("etc", 0o700),
                file("etc/hosts", "10.0.0.1"),
                file("etc/profile", "PATH=/bin"),
            ),
            both(
                file("etc/hosts", "10.0.0.2"),
                file("etc/profile", "PATH=/bin", 0o666),
                folder("root", 0o700),
                file("root/.bashrc", "PATH=/sbin"),
            ),
        )

    @on_mounts
    async def test_a_directory_is_replaced(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(folder("lib", 0o700), file("lib/hidden")),
            both(remove("lib"), folder("lib", 0o700), file("lib/not-hidden")),
            file("lib/newfile"),
        )

    @on_mounts
    async def test_owners_change(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        names = ["opt", "opt/a", "opt/a/b"]
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(*(folder(name, 0o700) for name in names), file("opt/a/b/file.txt", "hello")),
            both(*(chown(name, 1, 1) for name in [*names, "opt/a/b/file.txt"])),
        )

    @on_mounts
    async def test_directory_permissions_survive(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        names = [f"dir{number}" for number in range(1, 6)]
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                *(folder(name, 0o700) for name in names),
                *(chown(name, 1, 1) for name in names if name != "dir4"),
                file("dir4/f1", "..."),
                file("dir5/f1", "..."),
                chown("dir5/f1", 1, 1),
            ),
            both(chown("dir2", 0, 0), remove("dir3"), chown("dir4", 1, 1), chown("dir4/f1", 1, 1)),
            both(
                folder("dir3", 0o700),
                chown("dir3", 1, 1),
                remove("dir5"),
                folder("dir5", 0o700),
                chown("dir5", 1, 1),
            ),
        )

    @on_mounts
    async def test_files_are_deleted(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)),
            remove("foobar"),
            both(),
        )

    @on_mounts
    async def test_files_move(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                folder("dir1", 0o700),
                file("dir1/f1", "Hello"),
                folder("dir2", 0o700),
                file("dir2/f2", "..."),
            ),
            both(
                folder("dir3", 0o700),
                file("dir3/f1", "Hello"),
                remove("dir1"),
                link("dir2/f2", "dir3/f2"),
                remove("dir2/f2"),
            ),
        )

    @on_mounts
    async def test_renames(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        changes: list[Change] = [
            file("some/f1-overwrite", "new content 1"),
            rename("some/f1-overwrite", "some/f1"),
            rename("some/f2", "some/f3"),
        ]
        if self.renames_lower_directories:
            changes.insert(0, rename("dir1", "dir2"))
        await self.check_layers(
            snapshotter,
            tmp_path,
            both(
                folder("dir1", 0o700),
                folder("some", 0o700),
                file("some/f1", "was here first!"),
                file("some/f2", "nothing interesting"),
            ),
            both(*changes),
        )

    @on_mounts
    async def test_many_layers(self, snapshotter: Snapshotter, tmp_path: Path) -> None:
        flat = tmp_path / "flat"
        flat.mkdir()
        parent = ""
        for number in range(self.many_layers):
            change = both(
                *(
                    [folder("add"), folder("only")]
                    if number == 0
                    else [remove("only"), folder("only")]
                ),
                file("overwrite", f"{number} was here\n"),
                file(f"add/file-{number}", "same\n"),
                file(f"only/file-{number}", "only me\n"),
            )
            parent = await self.commit_change(snapshotter, tmp_path, parent, change)
            change(flat)
        with mounted(await snapshotter.view("view", parent, LABELS), tmp_path / "view") as root:
            assert contents(root) == contents(flat)

    # Tools ---------------------------------------------------------------------------------

    async def check_layers(
        self, snapshotter: Snapshotter, tmp_path: Path, *changes: Change
    ) -> list[str]:
        """Commits each change on top of the last, and compares each with a flat directory."""
        flat = tmp_path / f"flat-{next(self._numbers)}"
        flat.mkdir()
        names: list[str] = []
        for change in changes:
            parent = names[-1] if names else ""
            names.append(await self.commit_change(snapshotter, tmp_path, parent, change))
            change(flat)
            view = f"{names[-1]}-view"
            mounts = await snapshotter.view(view, names[-1], LABELS)
            with mounted(mounts, tmp_path / "view") as root:
                assert contents(root) == contents(flat)
            await snapshotter.remove(view)
        return names

    async def commit_change(
        self, snapshotter: Snapshotter, tmp_path: Path, parent: str, change: Change
    ) -> str:
        """A new committed snapshot: the parent, changed."""
        name = f"layer-{next(self._numbers)}"
        mounts = await snapshotter.prepare(f"{name}-key", parent, LABELS)
        with mounted(mounts, tmp_path / "mnt") as root:
            change(root)
        await snapshotter.commit(name, f"{name}-key", LABELS)
        return name

    async def commit_empty(self, snapshotter: Snapshotter, name: str, parent: str = "") -> None:
        await snapshotter.prepare(f"{name}-key", parent, LABELS)
        await snapshotter.commit(name, f"{name}-key", LABELS)

    async def make_one_of_each(self, snapshotter: Snapshotter) -> None:
        """c2 on c1, committed; a1 active and v1 view of c2; a2 and v2 without a parent."""
        await self.commit_empty(snapshotter, "c1")
        await self.commit_empty(snapshotter, "c2", "c1")
        await snapshotter.prepare("a1", "c2", LABELS)
        await snapshotter.prepare("a2", "", LABELS)
        await snapshotter.view("v1", "c2", LABELS)
        await snapshotter.view("v2", "", LABELS)
