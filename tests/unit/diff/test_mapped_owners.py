"""Layers of containers in user namespaces have the owners that the image has, whoever they are on
the host; a layer that is applied there becomes the container's."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.diff.media import OCI, OCI_GZIP
from supervisord.testing.mounting import mounted
from supervisord.testing.trees import both, chown, file, folder

from .conftest import House

pytestmark = [
    pytest.mark.blocks("it mounts, and writes to the mounts"),
    pytest.mark.parametrize("house", ["overlayfs"], indirect=True),
]

LABELS = {
    "containerd.io/snapshot/uidmapping": "0:100000:65536",
    "containerd.io/snapshot/gidmapping": "0:200000:65536",
}
BASE = both(folder("d"), file("d/theirs", "1"), file("gone"), file("same"), chown("same", 5, 6))


@pytest.fixture
def overlay(house: House) -> OverlaySnapshotter:
    assert isinstance(house.snapshotter, OverlaySnapshotter)
    if not house.snapshotter.remaps_ids:
        pytest.skip("this kernel has no id-mapped layers")
    return house.snapshotter


@pytest.mark.parametrize("parent", ["base", ""])
async def test_a_computed_layer(
    house: House, overlay: OverlaySnapshotter, tmp_path: Path, parent: str
) -> None:
    await house.layer("base", "", BASE)
    mounts = await overlay.prepare("a", parent, LABELS)
    with mounted(mounts, tmp_path / "mnt") as root:
        if parent:
            (root / "d/theirs").write_text("22")
            (root / "gone").unlink()
            (root / "new").touch()
            os.chown(root / "new", 100007, 200008)
        else:
            found = root.stat()
            assert (found.st_uid, found.st_gid) == (100000, 200000)
    if not parent:  # the mount maps this one, both ways
        (Path(mounts[0].source) / "new").touch()
        os.chown(Path(mounts[0].source) / "new", 7, 8)
    lower = await overlay.view("v", parent, {}) if parent else []
    made = await house.diff(lower, await overlay.mounts("a"), media_type=OCI_GZIP)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(await house.read(made)))) as tar:
        found_in = {each.name: (each.uid, each.gid) for each in tar}
    expected = {"new": (7, 8)}
    if parent:
        expected |= {"d": (0, 0), "d/theirs": (0, 0), ".wh.gone": (0, 0)}
    assert found_in == expected


@pytest.mark.parametrize("parent", ["base", ""])
async def test_an_applied_layer(
    house: House, overlay: OverlaySnapshotter, tmp_path: Path, parent: str
) -> None:
    await house.layer("base", "", BASE)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, uid in (("mine", 0), ("other", 7), (".wh.gone", 0)):
            entry = tarfile.TarInfo(name)
            entry.uid = entry.gid = uid
            tar.addfile(entry)
    blob = await house.blob(out.getvalue(), OCI)
    mounts = await overlay.prepare("a", parent, LABELS)
    await house.apply(blob, mounts)
    with mounted(mounts, tmp_path / "mnt") as root:
        seen = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in root.iterdir()}
    expected = {"mine": (100000, 200000), "other": (100007, 200007)}
    if parent:
        expected |= {"d": (100000, 200000), "same": (100005, 200006)}
        whiteout = Path(overlay.root, "snapshots/2/fs/gone").lstat()
        assert stat.S_ISCHR(whiteout.st_mode)
    assert seen == expected
