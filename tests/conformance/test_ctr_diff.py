"""``ctr snapshots diff``: the layer on standard output, or kept as a blob."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from .fixtures import Shop
from .ocitar import LAYER, sha256


@pytest.fixture
def changed(shop: Shop, unique: str, tmp_path: Path) -> str:
    """An active snapshot above the image, with a new file and one that is gone."""
    shop.ctr("snapshots", "prepare", unique, shop.chain_id)
    command = shop.ctr("snapshots", "mounts", str(tmp_path), unique).out.split()
    subprocess.run(command, check=True)
    try:
        (tmp_path / "new").write_text(unique)  # a blob that no other test has kept
        (tmp_path / "data/kept").unlink()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    return unique


def test_against_the_parent(shop: Shop, changed: str) -> None:
    done = shop.ctr.raw("snapshots", "diff", changed)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:gz") as layer:
        names = layer.getnames()
    assert names == ["data", "data/.wh.kept", "new"]


def test_between_two(shop: Shop, changed: str) -> None:
    options = ("--media-type", LAYER)
    done = shop.ctr.raw("snapshots", "diff", *options, shop.chain_id, changed)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as layer:
        assert "new" in layer.getnames()
    back = shop.ctr.raw("snapshots", "diff", *options, changed, shop.chain_id)
    with tarfile.open(fileobj=io.BytesIO(back.stdout)) as layer:
        assert {".wh.new", "data/kept"} <= set(layer.getnames())


def test_kept_with_a_label(shop: Shop, changed: str) -> None:
    """Otherwise the blob goes with the lease of the call."""
    arguments = ("--keep", "--label", "containerd.io/gc.root=1", "--label", "mine=yes")
    done = shop.ctr.raw("snapshots", "diff", *arguments, "--ref", "mine", changed)
    digest = sha256(done.stdout)
    listed = shop.ctr("content", "ls").out
    assert digest in listed
    assert "mine=yes" in listed
    shop.ctr("content", "rm", digest)


def test_snapshots_that_are_not_there(shop: Shop) -> None:
    result = shop.ctr("snapshots", "diff", "nobody", code=1)
    assert "not found" in result.err
