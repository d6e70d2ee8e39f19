"""The btrfs snapshotter: the suite, and what is particular to subvolumes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from snapshotters.btrfs import BtrfsSnapshotter
from supervisord.contracts.errors import AlreadyExists, FailedPrecondition, NotFound
from supervisord.contracts.snapshots import Kind, Snapshotter
from supervisord.linux import btrfs as calls
from supervisord.testing import SnapshotterSuite
from supervisord.testing.mounting import mounted
from tests.disks import disk

on_mounts = pytest.mark.blocks("it mounts, and writes to the mounts")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "btrfs") as mounted_at:
        yield mounted_at


@pytest.fixture
async def btrfs(volume: Path) -> AsyncIterator[BtrfsSnapshotter]:
    opened = await BtrfsSnapshotter.open(volume / "root", sync_remove=True)
    yield opened
    await opened.close()


class TestBtrfs(SnapshotterSuite):
    ways = ("direct", "daemon")
    many_layers = 32  # each waits for two transactions of the disk

    @pytest.fixture
    def root(self, volume: Path) -> Path:
        return volume / "root"

    async def open(self, root: Path) -> Snapshotter:
        return await BtrfsSnapshotter.open(root, sync_remove=True)


def subvolumes(btrfs: BtrfsSnapshotter) -> list[str]:
    return sorted(os.listdir(btrfs.root / "snapshots"))


async def test_another_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"/root must be on a btrfs filesystem"):
        await BtrfsSnapshotter.open(tmp_path / "root")
    assert not (tmp_path / "root").exists()


@on_mounts
async def test_usage_is_what_a_snapshot_does_not_share(
    btrfs: BtrfsSnapshotter, tmp_path: Path
) -> None:
    with mounted(await btrfs.prepare("a", "", {}), tmp_path / "mnt") as root:
        (root / "data").write_bytes(b"x" * (1 << 20))
    await btrfs.commit("base", "a", {})
    with mounted(await btrfs.prepare("b", "base", {}), tmp_path / "mnt") as root:
        assert (await btrfs.usage("b")).size == 0
        with (root / "data").open("r+b") as out:
            out.write(b"y" * 8192)
        (root / "new").write_bytes(b"z" * (1 << 16))
        usage = await btrfs.usage("b")
        assert (usage.size, usage.inodes) == (8192 + (1 << 16), 1)
    await btrfs.commit("top", "b", {})
    assert await btrfs.usage("top") == usage


@on_mounts
async def test_who_still_writes_does_not_reach_what_is_committed(
    btrfs: BtrfsSnapshotter, tmp_path: Path
) -> None:
    with mounted(await btrfs.prepare("a", "", {}), tmp_path / "mnt") as root:
        with (root / "data").open("w") as out:
            out.write("before")
            out.flush()
            await btrfs.commit("base", "a", {})
            out.write(" and after")
        assert subvolumes(btrfs) == ["1.committed"]
    with mounted(await btrfs.view("v", "base", {}), tmp_path / "mnt") as root:
        assert (root / "data").read_text() == "before"


@on_mounts
async def test_what_is_mounted_and_full_of_subvolumes_is_removed(
    btrfs: BtrfsSnapshotter, tmp_path: Path
) -> None:
    with mounted(await btrfs.prepare("a", "", {}), tmp_path / "mnt") as root:
        calls.create(str(root / "inner"))
        calls.create(str(root / "inner/innermost"))
        (root / "inner/innermost/file").write_text("x")
        calls.snapshot(str(root / "inner/innermost"), str(root / "again"), read_only=True)
        await btrfs.remove("a")
        assert subvolumes(btrfs) == []


@on_mounts
async def test_a_refused_commit_leaves_the_active_one(
    btrfs: BtrfsSnapshotter, tmp_path: Path
) -> None:
    await btrfs.prepare("a", "", {})
    await btrfs.commit("taken", "a", {})
    with mounted(await btrfs.prepare("b", "", {}), tmp_path / "mnt") as root:
        (root / "file").write_text("x")
        with pytest.raises(AlreadyExists):
            await btrfs.commit("taken", "b", {})
        assert subvolumes(btrfs) == ["1.committed", "2"]
        assert (root / "file").read_text() == "x"
    await btrfs.commit("free", "b", {})
    assert subvolumes(btrfs) == ["1.committed", "2.committed"]


@on_mounts
async def test_leftovers_are_cleaned_up_and_what_is_lost_is_made_again(
    btrfs: BtrfsSnapshotter,
) -> None:
    await btrfs.prepare("a", "", {})
    await btrfs.commit("base", "a", {})
    await btrfs.prepare("b", "base", {})
    await btrfs.prepare("c", "", {})
    await btrfs.view("v", "base", {})
    await btrfs.close()
    folder = btrfs.root / "snapshots"
    calls.create(str(folder / "1"))  # as a kill during a commit leaves them
    calls.create(str(folder / "2.committed"))
    calls.create(str(folder / "77"))
    (folder / "stray").mkdir()
    calls.destroy(str(folder / "3"))
    again = await BtrfsSnapshotter.open(btrfs.root)
    try:
        await again.cleanup()
        assert subvolumes(again) == ["1.committed", "2", "3"]
        assert {info.name: info.kind async for info in again.walk()} == {
            "base": Kind.COMMITTED,
            "b": Kind.ACTIVE,
            "c": Kind.ACTIVE,
            "v": Kind.VIEW,
        }
        calls.destroy(str(folder / "1.committed"))
        with pytest.raises(NotFound, match="subvolume is gone"):
            await again.prepare("d", "base", {})
        assert subvolumes(again) == ["2", "3"]
    finally:
        await again.close()
