"""A directory that somebody has taken away: the snapshot is told and can be removed, and nothing
is built on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from snapshotters.base import DirectorySnapshotter
from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.errors import DataLoss, NotFound
from supervisord.testing import ways


@pytest.mark.parametrize("kind", [OverlaySnapshotter, NativeSnapshotter])
async def test_nothing_is_built_on_what_is_lost(
    kind: type[OverlaySnapshotter] | type[NativeSnapshotter], tmp_path: Path
) -> None:
    backend: DirectorySnapshotter = await kind.open(tmp_path / "root")
    async with ways.metadata(backend, tmp_path / "above") as store:
        await store.prepare("key", "", {})
        await store.commit("lost", "key", {})
        (folder,) = os.listdir(tmp_path / "root/snapshots")
        await store.prepare("child", "lost", {})
        shutil.rmtree(tmp_path / "root/snapshots" / folder)
        for make in (store.prepare, store.view):
            with pytest.raises(DataLoss, match=r"snapshot 'lost': its directory \d+ is gone"):
                await make("new", "lost", {})
            with pytest.raises(NotFound):
                await store.stat("new")
        assert {info.name async for info in store.walk()} == {"lost", "child"}
        await store.remove("child")
        await store.remove("lost")
        assert [info async for info in store.walk()] == []
        await store.cleanup()
    await backend.close()  # which lets removals end
    assert os.listdir(tmp_path / "root/snapshots") == []


async def test_a_lower_one_is_missed_too(tmp_path: Path) -> None:
    backend = await OverlaySnapshotter.open(tmp_path / "root")
    parent = ""
    for name in ("lost", "middle", "top"):
        await backend.prepare("key", parent, {})
        await backend.commit(name, "key", {})
        parent = name
    shutil.rmtree(tmp_path / "root/snapshots/1")
    with pytest.raises(DataLoss, match="parent snapshot 'top': its directory 1 is gone"):
        await backend.prepare("key", "top", {})
    assert sorted(os.listdir(tmp_path / "root/snapshots")) == ["2", "3"]
    await backend.close()
