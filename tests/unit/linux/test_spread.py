"""The hint to spread folders over the disk, on file systems that know it and that do not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisord.linux.spread import spread


def attributes(path: Path) -> str:
    done = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


@contextmanager
def ext4(base: Path, *options: str) -> Iterator[Path]:
    """A small one on a loop device."""
    image, point = base / "image", base / "point"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def test_without_a_journal(tmp_path: Path) -> None:
    with ext4(tmp_path, "-O", "^has_journal") as point:
        folder = point / "snapshots"
        folder.mkdir()
        assert "T" not in attributes(folder)
        assert spread(str(folder))
        assert "T" in attributes(folder)
        assert spread(str(folder)), "again"


def test_with_a_journal(tmp_path: Path) -> None:
    with ext4(tmp_path, "-O", "has_journal") as point:
        assert not spread(str(point))
        assert "T" not in attributes(point)


def test_other_file_systems(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        assert not spread(str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spread(str(tmp_path / "nothing"))
