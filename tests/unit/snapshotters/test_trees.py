"""Directory trees as containers leave them: measured and removed, however deep and odd."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotters.trash import remove_tree
from snapshotters.usage import disk_usage
from supervisord.testing.trees import both, device, file, folder, link, symlink


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    yield tmp_path / "snapshots" / "1"
    remove_tree(tmp_path / "snapshots" / "1")


def dig(tree: Path, levels: int, name: str) -> None:
    """Folders in folders, with a file in every hundredth; deeper than a path can tell."""
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
        if level % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_usage_counts_what_the_disk_holds(tree: Path) -> None:
    empty = disk_usage(str(tree))
    assert empty.inodes == 1
    both(
        file("a", "x" * 100_000),
        link("a", "b"),
        folder("d"),
        link("a", "d/c"),
        symlink("a", "s"),
        device("n", 0o020000, 1, 3),
    )(tree)
    with open(tree / "sparse", "wb") as out:
        out.truncate(1 << 30)
        out.seek(1 << 29)
        out.write(b"x")
    usage = disk_usage(str(tree))
    assert usage.inodes == 6, "the root, a, d, s, n and sparse"
    assert usage.size == sum(
        (tree / name).lstat().st_blocks * 512 for name in (".", "a", "d", "s", "n", "sparse")
    )
    assert usage.size < 1 << 20


@pytest.mark.parametrize(("levels", "name"), [(1500, "d"), (300, "n" * 200)])
def test_deep_trees(tree: Path, levels: int, name: str) -> None:
    dig(tree, levels, name)
    assert disk_usage(str(tree)).inodes == 1 + levels + -(-levels // 100)
    assert remove_tree(tree)
    assert os.listdir(tree.parent) == []


def test_a_tree_without_end_is_refused(tree: Path) -> None:
    dig(tree, 2000, "n" * 200)
    with pytest.raises(OSError, match="File name too long") as refused:
        disk_usage(str(tree))
    assert refused.value.filename is None
    assert remove_tree(tree)
    assert os.listdir(tree.parent) == []


def test_removal_follows_no_links(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "link").symlink_to(outside)
    (tree / "file").symlink_to(outside / "kept")
    assert remove_tree(tree)
    assert (outside / "kept").exists()
    tree.symlink_to(outside)
    assert remove_tree(tree)
    assert (outside / "kept").exists()
    assert os.listdir(tree.parent) == []


def test_removal_goes_on_while_somebody_writes(tree: Path) -> None:
    (tree / "d").mkdir()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 2000:
            number += 1
            try:
                (tree / "d" / str(number)).touch()
            except FileNotFoundError:
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        remove_tree(tree)
    finally:
        stop.set()
        writer.join()
    assert remove_tree(tree)
    assert not tree.exists()


def test_what_cannot_be_removed_is_reported(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        (tree / f"f{number}").touch()
    (tree / "sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rmdir", _refuse)
        assert not remove_tree(tree)
    assert "could not remove the snapshot directory" in caplog.text
    assert remove_tree(tree)
    assert remove_tree(tree.parent / "never")
    assert remove_tree(tree / "of" / "nothing")


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")
