"""What is particular to overlayfs: mounts, options, directories, and what survives a crash."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotters.overlayfs import OverlaySnapshotter, Settings
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from supervisord.contracts.snapshots import Info, Kind, Mount


@pytest.fixture
async def overlay(tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
    opened = await OverlaySnapshotter.open(tmp_path / "root")
    yield opened
    await opened.close()


async def layers(overlay: OverlaySnapshotter, count: int) -> str:
    """Commits ``count`` empty layers; answers the name of the last."""
    parent = ""
    for number in range(1, count + 1):
        await overlay.prepare("key", parent, {})
        await overlay.commit(f"layer{number}", "key", {})
        parent = f"layer{number}"
    return parent


def folders(root: Path) -> set[str]:
    return {path.name for path in (root / "snapshots").iterdir()}


async def test_mounts(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    at = f"{tmp_path}/root/snapshots"
    assert await overlay.prepare("a", "", {}) == [Mount("bind", f"{at}/1/fs", ("rw", "rbind"))]
    assert await overlay.view("b", "", {}) == [Mount("bind", f"{at}/2/fs", ("ro", "rbind"))]
    await layers(overlay, 2)
    assert await overlay.view("c", "layer1", {}) == [Mount("bind", f"{at}/3/fs", ("ro", "rbind"))]
    (mount,) = await overlay.view("d", "layer2", {})
    assert mount == Mount("overlay", "overlay", (f"lowerdir={at}/4/fs:{at}/3/fs", "index=off"))
    (mount,) = await overlay.prepare("e", "layer1", {})
    assert mount.options == (
        f"workdir={at}/7/work",
        f"upperdir={at}/7/fs",
        f"lowerdir={at}/3/fs",
        "index=off",
    )


async def test_configured_options_win(tmp_path: Path) -> None:
    options = ("index=on", "volatile")
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(mount_options=options))
    await layers(overlay, 1)
    (mount,) = await overlay.prepare("a", "layer1", {})
    assert mount.options[3:] == options
    await overlay.close()


@pytest.mark.parametrize("name", ["with:colon", "with,comma", "with\\backslash"])
async def test_roots_that_cannot_be_mount_options(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="root"):
        await OverlaySnapshotter.open(tmp_path / name)


async def test_upperdir_label(tmp_path: Path) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(upperdir_label=True))
    await overlay.prepare("a", "", {"l": "1"})
    label = "containerd.io/snapshot/overlay.upperdir"
    expected = {"l": "1", label: f"{tmp_path}/root/snapshots/1/fs"}
    assert (await overlay.stat("a")).labels == expected
    assert [info.labels async for info in overlay.walk([f'labels."{label}"'])] == [expected]
    await overlay.close()


async def test_a_parent_at_commit(overlay: OverlaySnapshotter) -> None:
    await layers(overlay, 1)
    await overlay.prepare("a", "", {})
    await overlay.commit("b", "a", {}, parent="layer1")
    assert (await overlay.stat("b")).parent == "layer1"
    with pytest.raises(FailedPrecondition):
        await overlay.remove("layer1")
    await overlay.prepare("c", "layer1", {})
    await overlay.prepare("d", "", {})
    for parent, error in (("b", InvalidArgument), ("nowhere", InvalidArgument)):
        with pytest.raises(error):
            await overlay.commit("e", "c", {}, parent=parent)
    with pytest.raises(NotFound):
        await overlay.commit("e", "d", {}, parent="nowhere")
    with pytest.raises(FailedPrecondition, match="not committed"):
        await overlay.commit("e", "d", {}, parent="c")
    await overlay.commit("e", "c", {}, parent="layer1")


async def test_refused_creates_leave_nothing(overlay: OverlaySnapshotter) -> None:
    await overlay.prepare("a", "", {})
    for key, parent, error in (
        ("a", "", AlreadyExists),
        ("b", "nowhere", NotFound),
        ("b", "a", InvalidArgument),
        ("", "", InvalidArgument),
    ):
        with pytest.raises(error):
            await overlay.prepare(key, parent, {})
    assert folders(overlay.root) == {"1"}


async def test_removed_directories_go(tmp_path: Path) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(sync_remove=True))
    (mount,) = await overlay.prepare("a", "", {})
    (Path(mount.source) / "file").write_text("x")
    await overlay.remove("a")
    assert folders(overlay.root) == set()
    await overlay.close()


async def test_cleanup_takes_what_no_row_stands_for(overlay: OverlaySnapshotter) -> None:
    await overlay.prepare("a", "", {})
    for name in ("77", "rm-3", "new-xyz"):
        (overlay.root / "snapshots" / name / "fs").mkdir(parents=True)
    (overlay.root / "snapshots" / "stray").write_text("x")
    await asyncio.gather(overlay.cleanup(), *(overlay.prepare(f"p{n}", "", {}) for n in range(20)))
    assert len(folders(overlay.root)) == 21
    for number in range(20):
        (mount,) = await overlay.mounts(f"p{number}")
        assert Path(mount.source).is_dir()


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    top = await layers(overlay, 2)
    mounts = await overlay.prepare("a", top, {"l": "1"})
    before = [info async for info in overlay.walk()]
    await overlay.remove("a")
    await overlay.close()
    (tmp_path / "root/snapshots/9").mkdir()  # of a create that a crash cut off
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    assert [info async for info in overlay.walk()] == [each for each in before if each.name != "a"]
    (mount,) = await overlay.prepare("a", top, {"l": "1"})
    assert "/10/work" in mount.options[0], "no id comes twice"
    assert mount.options[2:] == mounts[0].options[2:]
    await overlay.close()


async def test_directories_lost_with_the_power_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    await layers(overlay, 1)
    os.chown(tmp_path / "root/snapshots/1/fs", 5, 6)
    await overlay.prepare("active", "layer1", {})
    await overlay.view("view", "", {})
    await overlay.close()
    for number in (2, 3):
        shutil.rmtree(tmp_path / f"root/snapshots/{number}")
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    assert (tmp_path / "root/snapshots/2/work").is_dir()
    assert (tmp_path / "root/snapshots/2/fs").stat().st_uid == 5
    assert (tmp_path / "root/snapshots/3/fs").is_dir()
    await overlay.close()
    shutil.rmtree(tmp_path / "root/snapshots/1")
    overlay = await OverlaySnapshotter.open(tmp_path / "root")
    assert "its directory 1 is gone" in caplog.text
    await overlay.prepare("other", "", {})
    for make in (overlay.prepare, overlay.view):
        with pytest.raises(DataLoss, match="parent snapshot 'layer1': its directory 1 is gone"):
            await make("new", "layer1", {})
    with pytest.raises(DataLoss, match="parent snapshot 'layer1': its directory 1 is gone"):
        await overlay.commit("name", "other", {}, "layer1")
    shutil.rmtree(tmp_path / "root/snapshots/2")
    with pytest.raises(NotFound, match="snapshot 'active': its directory is gone"):
        await overlay.usage("active")
    with pytest.raises(NotFound, match="snapshot 'active': its directory is gone"):
        await overlay.commit("name", "active", {})
    assert (await overlay.stat("active")).kind == Kind.ACTIVE
    await overlay.remove("active")
    await overlay.close()


async def test_a_cancelled_prepare_is_whole_or_not_there(overlay: OverlaySnapshotter) -> None:
    async def cancelled(number: int) -> None:
        work = asyncio.ensure_future(overlay.prepare(f"k{number}", "", {}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    await asyncio.gather(*(cancelled(number) for number in range(10)))
    await overlay.prepare("last", "", {})
    infos = [info async for info in overlay.walk()]
    for info in infos:
        (mount,) = await overlay.mounts(info.name)
        assert Path(mount.source).is_dir()
    assert len(folders(overlay.root)) == len(infos)


async def test_closed_means_unavailable(overlay: OverlaySnapshotter) -> None:
    await overlay.close()
    for work in (overlay.prepare("a", "", {}), overlay.view("a", "", {}), overlay.remove("a")):
        with pytest.raises(Unavailable):
            await work


async def test_usage_of_a_view_is_nothing(overlay: OverlaySnapshotter) -> None:
    await overlay.view("v", "", {})
    assert (await overlay.usage("v")).size == 0
    assert (await overlay.stat("v")) == Info(
        "v",
        kind=Kind.VIEW,
        created_at=(await overlay.stat("v")).created_at,
        updated_at=(await overlay.stat("v")).updated_at,
    )
