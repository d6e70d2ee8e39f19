"""Snapshots of overlayfs whose owners are mapped, by labels."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotters.overlayfs import OverlaySnapshotter, Settings, probe
from snapshotters.overlayfs.idmap import owner
from supervisord.contracts.errors import InvalidArgument
from supervisord.linux.mount import mount_all, mount_points, unmount_all
from supervisord.testing.mounting import mounted

LABELS = {
    "containerd.io/snapshot/uidmapping": "0:100000:65536",
    "containerd.io/snapshot/gidmapping": "1:5:1,0:200000:1",
}
OPTIONS = ("uidmap=0:100000:65536", "gidmap=1:5:1,0:200000:1")


@pytest.fixture
async def overlay(tmp_path: Path) -> AsyncIterator[OverlaySnapshotter]:
    opened = await OverlaySnapshotter.open(tmp_path / "root")
    if not opened.remaps_ids:
        await opened.close()
        pytest.skip("this kernel has no id-mapped layers")
    yield opened
    await opened.close()


def ids(path: Path | str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


async def base(overlay: OverlaySnapshotter) -> Path:
    """A layer ``base`` of user 1 and group 1 at its root; answers its folder."""
    (mount,) = await overlay.prepare("key", "", {})
    os.chown(mount.source, 1, 1)
    (Path(mount.source) / "file").write_text("below")
    await overlay.commit("base", "key", {})
    return Path(mount.source)


@pytest.mark.blocks("it mounts, and writes to the mounts")
async def test_what_is_prepared_is_mapped(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    below = await base(overlay)
    mounts = await overlay.prepare("a", "base", LABELS)
    assert mounts[0].options[:2] == OPTIONS
    upper = f"{overlay.root}/snapshots/2/fs"
    assert ids(upper) == (100001, 5), "as the parent's root, mapped"
    with mounted(mounts, tmp_path / "mnt") as root:
        assert ids(root) == (100001, 5)
        assert ids(root / "file") == (100000, 200000)
        (root / "file").write_text("above")
    assert ids(f"{upper}/file") == (100000, 200000)
    assert ids(below / "file") == (0, 0)
    assert (below / "file").read_text() == "below"


@pytest.mark.blocks("it mounts, and writes to the mounts")
@pytest.mark.parametrize(("kind", "parent"), [("prepare", ""), ("view", ""), ("view", "base")])
async def test_a_single_folder_is_mapped_by_its_mount(
    overlay: OverlaySnapshotter, tmp_path: Path, kind: str, parent: str
) -> None:
    await base(overlay)
    make = overlay.prepare if kind == "prepare" else overlay.view
    (mount,) = await make("a", parent, LABELS)
    assert (mount.type, mount.options[:2]) == ("bind", OPTIONS)
    with mounted([mount], tmp_path / "mnt") as root:
        assert ids(root) == ((100001, 5) if parent else (100000, 200000))


async def test_a_kernel_that_cannot(tmp_path: Path) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(remap_ids=False))
    (mount,) = await overlay.prepare("a", "", LABELS)
    assert mount.options == ("rw", "rbind")
    assert ids(mount.source) == (100000, 200000)
    await overlay.close()


def test_what_tells_that_layers_can_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(probe, "kernel", lambda: (5, 18))
        assert not probe.maps_ids(str(tmp_path))
    assert not probe.maps_ids("/proc"), "that file system has no maps"
    assert not probe.maps_ids(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ["", "0", "0:1", "1:2:3", "0:x:1", "0:5:0", "-1:-1:-2", "0:0:1,x"])
async def test_malformed_maps(tmp_path: Path, text: str) -> None:
    overlay = await OverlaySnapshotter.open(tmp_path / "root", Settings(remap_ids=True))
    for label in LABELS:
        labels = {**LABELS, label: text}
        with pytest.raises(InvalidArgument, match=label):
            owner(labels, 0, 0)
        with pytest.raises(InvalidArgument, match=label):
            await overlay.prepare("a", "", labels)
    assert os.listdir(overlay.root / "snapshots") == []
    await overlay.close()


def test_ids_beyond_the_map_become_the_root() -> None:
    assert owner(LABELS, 65535, 1) == (165535, 5)
    assert owner(LABELS, 65536, 2) == (100000, 200000)
    only_users = {"containerd.io/snapshot/uidmapping": "0:7:1"}
    assert owner(only_users, 0, 9) == (7, 9), "as containerd has it: no map changes nothing"


@pytest.mark.blocks("it mounts")
async def test_one_layer_for_all(overlay: OverlaySnapshotter, tmp_path: Path) -> None:
    """Containers with different maps share the layer, and have a mount each and nothing else."""
    await base(overlay)
    inodes = set()
    for number in range(3):
        labels = {"containerd.io/snapshot/uidmapping": f"0:{100000 * (number + 1)}:65536"}
        mounts = await overlay.prepare(f"a{number}", "base", labels)
        (tmp_path / f"m{number}").mkdir()
        mount_all(mounts, str(tmp_path / f"m{number}"))
        found = os.stat(tmp_path / f"m{number}" / "file")
        assert found.st_uid == 100000 * (number + 1)
        inodes.add(found.st_ino)
    points = [point for point in mount_points() if point.startswith(str(tmp_path))]
    assert points == [f"{tmp_path}/m{number}" for number in range(3)]
    assert len(inodes) == 1
    for number in range(3):
        unmount_all(str(tmp_path / f"m{number}"))
