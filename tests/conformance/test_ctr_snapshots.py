"""``ctr snapshots``: prepare, mounts, commit, view, diff, usage, label, info, rm, ls."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .ctr import Ctr
from .fixtures import Shop

Edit = Callable[[Path], None]


@pytest.fixture(params=["overlayfs", "native"])
def snapshotter(request: pytest.FixtureRequest) -> str:
    """Both snapshotters that every daemon has."""
    return str(request.param)


@pytest.fixture
def snap(ctr: Ctr, snapshotter: str, tmp_path: Path) -> Iterator[Snapshots]:
    """The snapshotter's verbs."""
    yield Snapshots(ctr, snapshotter, tmp_path)


class Snapshots:
    """``ctr snapshots --snapshotter NAME``."""

    def __init__(self, ctr: Ctr, name: str, folder: Path) -> None:
        self.ctr, self.name, self.folder = ctr, name, folder

    def __call__(self, *arguments: str) -> str:
        return self.ctr("snapshots", "--snapshotter", self.name, *arguments).out

    def refused(self, *arguments: str, says: str) -> None:
        self.ctr.refused("snapshots", "--snapshotter", self.name, *arguments, says=says)

    def edit(self, key: str, change: Edit) -> None:
        """Mounts it as ``ctr snapshots mounts`` says, and lets ``change`` work inside."""
        point = self.folder / f"mnt-{key}"
        point.mkdir()
        script = self("mounts", str(point), key)
        subprocess.run(["sh", "-ec", script], check=True, capture_output=True)
        try:
            change(point)
        finally:
            subprocess.run(["umount", str(point)], check=True)

    def kinds(self) -> dict[str, list[str]]:
        """Parent and kind by name."""
        return {r[0]: r[1:] for r in self.ctr("snapshots", "--snapshotter", self.name, "ls").rows()}


def lower(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir/kept").write_text("kept")
    (root / "dir/gone").write_text("gone")
    (root / "changed").write_text("old")


def upper(root: Path) -> None:
    (root / "dir/gone").unlink()
    (root / "changed").write_text("new!")
    (root / "added").write_bytes(b"x" * 100_000)


def test_prepare_commit_view_remove(snap: Snapshots) -> None:
    snap("prepare", "k1")
    assert snap.kinds() == {"k1": ["Active"]}
    snap.edit("k1", lower)
    snap("commit", "n1", "k1")
    assert snap.kinds() == {"n1": ["Committed"]}
    snap("prepare", "k2", "n1")
    snap("prepare", "k3", "n1")
    assert snap.kinds()["k2"] == ["n1", "Active"]
    snap.edit("k2", upper)

    def unchanged(root: Path) -> None:
        assert (root / "changed").read_text() == "old"
        assert (root / "dir/gone").exists()

    snap.edit("k3", unchanged)
    snap.refused("rm", "n1", says="cannot remove snapshot with child")
    snap("rm", "k3")
    snap("commit", "n2", "k2")
    snap.refused("rm", "n1", says="failed precondition")
    snap("rm", "n2")
    snap("rm", "n1")
    assert snap.kinds() == {}
    snap.refused("rm", "n1", says="not found")


def test_view_is_read_only(snap: Snapshots) -> None:
    snap("prepare", "k1")
    snap.edit("k1", lower)
    snap("commit", "n1", "k1")

    def refuse(root: Path) -> None:
        assert (root / "changed").read_text() == "old"
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("x")

    snap("view", "v1", "n1")
    snap.edit("v1", refuse)


def test_taken_names_and_missing_parents(snap: Snapshots) -> None:
    snap("prepare", "k1")
    snap.refused("prepare", "k1", says="already exists")
    snap.refused("prepare", "k2", "absent", says="not found")
    snap.refused("prepare", "k2", "k1", says="committed")
    snap.refused("commit", "n1", "absent", says="not found")
    snap("commit", "n1", "k1")
    snap("prepare", "k1")
    snap.refused("commit", "n1", "k1", says="already exists")
    snap.refused("mounts", "/mnt", "n1", says="failed precondition")
    assert set(snap.kinds()) == {"n1", "k1"}


@pytest.mark.parametrize("which", [["k2"], ["n1", "k2"]], ids=["parent", "two"])
def test_diff_is_an_oci_layer(snap: Snapshots, which: list[str]) -> None:
    snap("prepare", "k1")
    snap.edit("k1", lower)
    snap("commit", "n1", "k1")
    snap("prepare", "k2", "n1")
    snap.edit("k2", upper)
    done = snap.ctr.raw("snapshots", "--snapshotter", snap.name, "diff", *which)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:gz") as archive:
        members = {m.name.rstrip("/"): m for m in archive}
        added = archive.extractfile(members["added"])
        assert added is not None
        assert added.read() == b"x" * 100_000
    assert set(members) == {"added", "changed", "dir", "dir/.wh.gone"}
    assert members["changed"].size == 4


def test_diff_as_a_plain_tar(snap: Snapshots) -> None:
    snap("prepare", "k1")
    snap.edit("k1", lower)
    done = snap.ctr.raw(
        "snapshots",
        "--snapshotter",
        snap.name,
        "diff",
        "--media-type",
        "application/vnd.oci.image.layer.v1.tar",
        "k1",
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:") as archive:
        names = {m.name.rstrip("/") for m in archive}
    assert names == {"changed", "dir", "dir/kept", "dir/gone"}


def test_usage_counts_what_the_snapshot_itself_has(snap: Snapshots) -> None:
    def usage(key: str) -> tuple[int, int]:
        rows = snap.ctr("snapshots", "--snapshotter", snap.name, "usage", "-b", key).rows()
        return int(rows[0][1]), int(rows[0][2])

    def large(root: Path) -> None:
        (root / "large").write_bytes(os.urandom(1 << 20))
        (root / "small").write_bytes(b"x")

    snap("prepare", "k1")
    empty, inodes = usage("k1")
    snap.edit("k1", large)
    size, count = usage("k1")
    assert 1 << 20 <= size - empty <= (1 << 20) + 65536
    assert count - inodes == 2
    snap("commit", "n1", "k1")
    assert usage("n1")[0] >= 1 << 20
    if snap.name == "overlayfs":
        snap("prepare", "k2", "n1")
        assert usage("k2")[0] < 65536


def test_labels_and_info(snap: Snapshots) -> None:
    snap("prepare", "k1")
    snap("label", "k1", "a=b")
    info = json.loads(snap("info", "k1"))
    assert info["Kind"] == "Active"
    assert info["Name"] == "k1"
    assert info["Labels"]["a"] == "b"
    snap("label", "k1", "a=")
    assert "a" not in json.loads(snap("info", "k1"))["Labels"]
    snap("commit", "n1", "k1")
    assert json.loads(snap("info", "n1"))["Kind"] == "Committed"
    snap.refused("info", "k1", says="not found")


def test_tree_shows_children_below_parents(shop: Shop) -> None:
    lines = shop.ctr("snapshots", "tree").out.splitlines()
    assert len(lines) == 3
    assert lines[2].strip().endswith(shop.chain_id)


def test_snapshots_of_another_namespace_are_not_seen(shop: Shop, ctr: Ctr) -> None:
    assert ctr("snapshots", "ls").rows() == []
    ctr.refused("snapshots", "info", shop.chain_id, says="not found")


def test_unknown_snapshotter_is_named(ctr: Ctr) -> None:
    ctr.refused("snapshots", "--snapshotter", "nosuch", "ls", says="nosuch")
