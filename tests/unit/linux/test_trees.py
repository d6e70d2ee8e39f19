"""Removing trees: deep ones, links, and what cannot be removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from supervisord.linux.trees import remove_tree


def nest(top: Path, depth: int) -> None:
    """``depth`` folders in each other, with a file in the last, far beyond the longest path."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("a-name-of-some-length", dir_fd=fd)
        below = os.open("a-name-of-some-length", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_very_deep_trees(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    nest(top, 3000)
    remove_tree(str(top))
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/link").symlink_to(outside)
    (top / "c").mkdir()
    (top / "c/link").symlink_to("../a")
    os.mkfifo(top / "fifo")
    os.mkdir(os.fsencode(top) + b"/\xff\xfe")
    remove_tree(os.fsencode(top))
    assert not top.exists()
    assert (outside / "kept").exists()
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        remove_tree(str(tmp_path / "link"))


def test_what_is_busy_is_told(tmp_path: Path) -> None:
    (tmp_path / "top/mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "top/mounted"], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            remove_tree(str(tmp_path / "top"))
    finally:
        subprocess.run(["umount", tmp_path / "top/mounted"], check=True)
    remove_tree(str(tmp_path / "top"))
