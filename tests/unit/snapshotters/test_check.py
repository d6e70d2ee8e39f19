"""The check of every directory snapshotter: nothing is found where nothing is wrong; what is gone
is dropped where nothing writable stands on it; what nothing stands for is removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from snapshotters import index
from snapshotters.base import DirectorySnapshotter
from snapshotters.btrfs import BtrfsSnapshotter
from snapshotters.erofs import ErofsSnapshotter
from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.checks import Checkable, Finding, Options
from supervisord.contracts.snapshots import Snapshotter
from tests.disks import disk

KINDS = ("overlayfs", "native", "btrfs", "erofs")


@pytest.fixture(params=KINDS)
async def snapshotter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Snapshotter]:
    """One with a layer, a view and a writable snapshot on it, and another layer."""
    file_system = "btrfs" if request.param == "btrfs" else "ext4"
    with disk(tmp_path, file_system, size=256 << 20) as place:
        opened = await _opened(request.param, place / "root")
        try:
            for name in ("one", "other"):
                await opened.prepare(f"{name}-active", "", {})
                await opened.commit(name, f"{name}-active", {})
            await opened.prepare("rw", "one", {})
            await opened.view("view", "other", {})
            yield opened
        finally:
            await opened.close()


async def _opened(kind: str, root: Path) -> DirectorySnapshotter:
    if kind == "overlayfs":
        return await OverlaySnapshotter.open(root)
    if kind == "native":
        return await NativeSnapshotter.open(root)
    if kind == "btrfs":
        return await BtrfsSnapshotter.open(root)
    return await ErofsSnapshotter.open(root)


async def run(snapshotter: Snapshotter, *, repair: bool = False) -> set[tuple[str, str, bool]]:
    """Keys and problems of what is found, and whether it was repaired."""
    assert isinstance(snapshotter, Checkable)
    return {
        (each.key, each.problem, each.repaired)
        async for each in snapshotter.check(Options(repair=repair))
        if isinstance(each, Finding)
    }


def vanish(path: str) -> None:
    """Somebody removes what a snapshot is."""
    if subprocess.run(["btrfs", "subvolume", "delete", path], capture_output=True).returncode == 0:
        return
    if Path(path).is_dir():
        shutil.rmtree(path)
    else:
        os.unlink(path)


async def test_every_kind(snapshotter: DirectorySnapshotter) -> None:
    rows = {info.name async for info in snapshotter.walk()}
    assert rows == {"one", "other", "rw", "view"}
    assert await run(snapshotter) == set()
    assert await run(snapshotter, repair=True) == set()
    (database,) = snapshotter.databases()
    assert database.is_file()
    (Path(snapshotter._folder) / "77").mkdir()
    assert await run(snapshotter) == {("77", "orphan", False)}
    assert await run(snapshotter, repair=True) == {("77", "orphan", True)}

    for name in ("one", "other"):
        row = snapshotter._database.read(partial(index.get, name=name))
        place = snapshotter._place(row)
        assert place is not None
        vanish(place)
    found = await run(snapshotter)
    assert {("one", "missing", False), ("other", "missing", False)} <= found
    found = await run(snapshotter, repair=True)
    assert ("one", "missing", False) in found  # something writable stands on it
    assert ("other", "missing", True) in found
    assert {info.name async for info in snapshotter.walk()} == {"one", "rw"}
    await snapshotter.prepare("other-active", "", {})  # it can be made again
    await snapshotter.commit("other", "other-active", {})
    assert {each[0] for each in await run(snapshotter)} == {"one"}
