"""The hint to spread folders over the disk, on file systems that know it and that do not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from supervisord.linux.spread import spread


def attributes(path: Path) -> str:
    done = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


@pytest.fixture
def ext4(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small one on a loop device."""
    image, point = tmp_path / "image", tmp_path / "point"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", point], check=True))
    return point


def test_ext4_knows_it(ext4: Path) -> None:
    folder = ext4 / "snapshots"
    folder.mkdir()
    assert "T" not in attributes(folder)
    assert spread(str(folder))
    assert "T" in attributes(folder)
    assert spread(str(folder)), "again"


def test_others_do_not(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", tmp_path], check=True))
    assert not spread(str(tmp_path))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spread(str(tmp_path / "nothing"))
