"""The life of snapshots: from a key to a name, parents and children, what is refused.

The rules are those that containerd's suite and the tests of its storage state.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.contracts.snapshots import Kind, Snapshotter

from .base import LABELS, Base, aside
from .mounting import mounted_aside
from .trees import both, contents, file, folder, remove


@pytest.mark.asyncio
class Life(Base):
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
        with pytest.raises(FailedPrecondition, match="remove"):
            await snapshotter.remove(names[0])
        await snapshotter.remove(names[1])
        await snapshotter.remove(names[0])
        assert [info async for info in snapshotter.walk()] == []

    async def test_commit_takes_the_key_away(self, snapshotter: Snapshotter) -> None:
        before = time.time_ns()
        assert await snapshotter.prepare("key", "", LABELS)
        info = await snapshotter.stat("key")
        assert (info.name, info.parent, info.kind) == ("key", "", Kind.ACTIVE)
        assert before <= info.created_at == info.updated_at <= time.time_ns()
        await snapshotter.commit("name", "key", LABELS)
        info = await snapshotter.stat("name")
        assert (info.name, info.parent, info.kind) == ("name", "", Kind.COMMITTED)
        for look in (snapshotter.stat, snapshotter.mounts, snapshotter.usage, snapshotter.remove):
            with pytest.raises(NotFound):
                await look("key")

    async def test_a_chain_of_parents(self, snapshotter: Snapshotter) -> None:
        parents = ["", "a", "b"]
        for name, parent in zip("abc", parents, strict=True):
            await self.commit_empty(snapshotter, name, parent)
        found = "c"
        for parent in reversed(parents):
            found = (await snapshotter.stat(found)).parent
            assert found == parent

    async def test_a_view_has_a_kind_of_its_own(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        assert await snapshotter.view("view", "base", LABELS)
        info = await snapshotter.stat("view")
        assert (info.name, info.parent, info.kind) == ("view", "base", Kind.VIEW)
        for make in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(InvalidArgument):
                await make("other", "view", LABELS)

    async def test_keys_and_names_share_one_space(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        await snapshotter.prepare("taken", "base", LABELS)
        await snapshotter.view("view", "base", LABELS)
        for make in (snapshotter.prepare, snapshotter.view):
            for name in ("taken", "base", "view"):
                with pytest.raises(AlreadyExists):
                    await make(name, "base", LABELS)
        for name in ("base", "taken", "view"):
            with pytest.raises(AlreadyExists):
                await snapshotter.commit(name, "taken", LABELS)
        assert (await snapshotter.stat("taken")).kind == Kind.ACTIVE

    async def test_parents_are_committed(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("active", "", LABELS)
        for make in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(NotFound, match="nowhere"):
                await make("new", "nowhere", LABELS)
            with pytest.raises(InvalidArgument, match="active"):
                await make("new", "active", LABELS)
        with pytest.raises(NotFound):
            await snapshotter.stat("new")

    async def test_only_active_ones_are_committed(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")
        await snapshotter.view("view", "base", LABELS)
        for key in ("base", "view"):
            with pytest.raises(FailedPrecondition, match=key):
                await snapshotter.commit("other", key, LABELS)
        with pytest.raises(NotFound, match="nowhere"):
            await snapshotter.commit("other", "nowhere", LABELS)
        with pytest.raises(NotFound):
            await snapshotter.stat("other")

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

    async def test_a_new_snapshot_has_nothing_of_a_removed_one(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        for _ in range(2):
            mounts = await snapshotter.prepare("key", "", LABELS)
            async with mounted_aside(mounts, tmp_path / "mnt") as root:
                assert await aside(contents, root) == {}
                await aside(file("left", "over"), root)
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

    async def test_one_of_many_wins_a_name(self, snapshotter: Snapshotter) -> None:
        tries = [snapshotter.prepare("key", "", LABELS) for _ in range(8)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        failures = [each for each in results if isinstance(each, BaseException)]
        assert len(failures) == 7
        assert all(isinstance(each, AlreadyExists) for each in failures)

    async def test_one_of_many_commits_under_a_name(self, snapshotter: Snapshotter) -> None:
        keys = [f"key-{number}" for number in range(6)]
        for key in keys:
            await snapshotter.prepare(key, "", LABELS)
        tries = [snapshotter.commit("name", key, LABELS) for key in keys]
        results = await asyncio.gather(*tries, return_exceptions=True)
        failures = [each for each in results if each is not None]
        assert len(failures) == 5
        assert all(isinstance(each, AlreadyExists) for each in failures)
        left = {info.name: info.kind async for info in snapshotter.walk()}
        assert left.pop("name") == Kind.COMMITTED
        assert len(left) == 5
        assert set(left.values()) == {Kind.ACTIVE}

    async def test_many_at_once(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "base")

        async def one(number: int) -> None:
            mounts = await snapshotter.prepare(f"key-{number}", "base", LABELS)
            assert await snapshotter.mounts(f"key-{number}") == mounts
            if number % 2:
                await snapshotter.commit(f"name-{number}", f"key-{number}", LABELS)
            else:
                await snapshotter.remove(f"key-{number}")

        await asyncio.gather(*(one(number) for number in range(24)))
        found = {info.name async for info in snapshotter.walk()}
        assert found == {"base", *(f"name-{number}" for number in range(1, 24, 2))}

    async def test_a_prepare_that_was_given_up_can_be_repeated(
        self, snapshotter: Snapshotter
    ) -> None:
        await self.commit_empty(snapshotter, "base")
        for moment in (0.0, 0.001, 0.01):
            with suppress(TimeoutError):
                async with asyncio.timeout(moment):
                    await snapshotter.prepare("key", "base", LABELS)
            while True:  # what was given up may still come to its end
                try:
                    await snapshotter.prepare("key", "base", LABELS)
                    break
                except AlreadyExists:
                    await snapshotter.remove("key")
            await snapshotter.remove("key")

    async def test_cleanup_leaves_what_there_is(
        self, snapshotter: Snapshotter, tmp_path: Path
    ) -> None:
        parent = await self.commit_change(snapshotter, tmp_path, "", file("foo", "foo"))
        mounts = await snapshotter.prepare("key", parent, LABELS)
        await snapshotter.prepare("gone", parent, LABELS)
        await snapshotter.remove("gone")
        with suppress(Unimplemented):
            await snapshotter.cleanup()
        async with mounted_aside(mounts, tmp_path / "mnt") as root:
            assert (root / "foo").read_text() == "foo"

    async def test_close_twice(self, snapshotter: Snapshotter) -> None:
        await self.commit_empty(snapshotter, "name")
        await snapshotter.remove("name")
        await snapshotter.close()
        await snapshotter.close()
        with pytest.raises(Error):
            await snapshotter.prepare("key", "", LABELS)

    async def test_it_is_all_there_after_a_restart(self, root: Path, tmp_path: Path) -> None:
        first = await self.open(root)
        try:
            await self.make_one_of_each(first)
            parent = await self.commit_change(first, tmp_path, "c2", file("foo", "foo"))
            before = {info.name: info async for info in first.walk()}
        finally:
            await first.close()
        second = await self.open(root)
        try:
            assert {info.name: info async for info in second.walk()} == before
            with pytest.raises(FailedPrecondition):
                await second.remove("c1")
            mounts = await second.prepare("key", parent, LABELS)
            async with mounted_aside(mounts, tmp_path / "mnt") as seen:
                assert (seen / "foo").read_text() == "foo"
        finally:
            await second.close()
