"""Extraction straight into the upper directory of an overlay."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from supervisord.contracts.snapshots import Mount
from supervisord.testing.mounting import mounted

from .archives import archive, folder, hardlink, member
from .conftest import Apply
from .forks import Forks


def is_mark(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def overlay(root: Path, tmp_path: Path) -> list[Mount]:
    return [Mount("overlay", "overlay", (f"lowerdir={root}:{tmp_path / 'lower'}",))]


def test_whiteouts_become_marks(apply_overlay: Apply, root: Path, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "d/sub").mkdir(parents=True)
    (lower / "opaque").mkdir()
    for name in ("d/file", "d/sub/file", "opaque/old"):
        (lower / name).write_text("old")
    apply_overlay(
        archive(
            member("d/.wh.file", uid=1, gid=2),
            member("d/.wh.sub"),
            folder("opaque"),
            member("opaque/new", b"new"),
            member("opaque/.wh..wh..opq"),
        )
    )
    assert is_mark(root / "d/file")
    assert (root / "d/file").lstat().st_uid == 1
    assert os.getxattr(root / "opaque", "trusted.overlay.opaque") == b"y"
    with mounted(overlay(root, tmp_path), tmp_path / "merged") as seen:
        names = sorted(str(path.relative_to(seen)) for path in seen.rglob("*"))
    assert names == ["d", "opaque", "opaque/new"]


def test_userxattr(apply_overlay: Apply, root: Path) -> None:
    apply_overlay(archive(folder("d"), member("d/.wh..wh..opq")), "userxattr")
    assert os.listxattr(root / "d") == ["user.overlay.opaque"]


def test_what_the_layer_brings_hides_what_is_below(
    apply_overlay: Apply, root: Path, tmp_path: Path
) -> None:
    for name in ("before", "after", "implied", "file"):
        (tmp_path / "lower" / name).mkdir(parents=True)
        (tmp_path / "lower" / name / "old").write_text("old")
    result = apply_overlay(
        archive(
            member(".wh.before"),
            folder("before"),
            folder("after"),
            member(".wh.after"),
            member(".wh.implied"),
            member("implied/new"),
            member(".wh.file"),
            member("file", b"new"),
            member(".wh.file"),
            member(".wh.gone"),
            member(".wh.gone"),
        )
    )
    assert "error" not in result
    with mounted(overlay(root, tmp_path), tmp_path / "merged") as seen:
        names = sorted(str(path.relative_to(seen)) for path in seen.rglob("*"))
    assert names == ["after", "before", "file", "implied", "implied/new"]


def test_missing_folders_look_like_the_lower_ones(
    apply_overlay: Apply, root: Path, tmp_path: Path
) -> None:
    lower = tmp_path / "lower" / "a/b"
    lower.mkdir(parents=True)
    os.chown(lower, 12, 34)
    lower.chmod(0o1770)
    os.setxattr(lower, "user.note", b"kept")
    os.utime(lower, ns=(5, 6))
    (tmp_path / "lower/escape").symlink_to("/etc")
    apply_overlay(archive(member("a/b/c", b"1"), member("escape/d", b"1"), member("new/e")))
    found = (root / "a/b").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o1770)
    assert found.st_mtime_ns == 6
    assert os.getxattr(root / "a/b", "user.note") == b"kept"
    assert (root / "new").stat().st_mode & 0o7777 == 0o755
    assert (root / "escape").stat().st_mode & 0o7777 == 0o755


def test_other_mounts_are_mounted_out_of_sight(
    forks: Forks, root: Path, tmp_path: Path, apply_overlay: Apply
) -> None:
    (tmp_path / "point").mkdir()
    (root / "inner").mkdir()
    result = forks.run(
        archive(member("inner/f", b"1"), member("g", b"2")),
        [
            {"type": "bind", "source": str(root), "options": ["rbind", "rw"]},
            {"type": "tmpfs", "source": "tmpfs", "options": ["size=1m"], "target": "/inner"},
        ],
        mountpoint=str(tmp_path / "point"),
    )
    assert "error" not in result
    assert (root / "g").read_text() == "2"
    assert not (root / "inner/f").exists(), "that went to the tmpfs, which is gone"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_read_only_bind_is_not_written(forks: Forks, root: Path, tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    result = forks.run(
        archive(member("f")),
        [{"type": "bind", "source": str(root), "options": ["rbind", "ro"]}],
        mountpoint=str(tmp_path / "point"),
    )
    assert "Read-only file system" in result["error"]["message"]
    assert list(root.iterdir()) == []


def test_a_full_disk_says_so(forks: Forks, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        mount = {"type": "bind", "source": str(small), "options": ["rw"]}
        result = forks.run(archive(member("f", bytes(3_000_000))), [mount])
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert result["error"]["code"] == 8


def test_hard_links_to_what_is_gone(apply_overlay: Apply, root: Path) -> None:
    """A link to a mark would be another mark."""
    error = apply_overlay(archive(member(".wh.a"), hardlink("b", "a")))["error"]
    assert error["code"] == 3
    assert "not there" in error["message"]
    assert not os.path.lexists(root / "b")


def test_hard_links_to_files_below(apply_overlay: Apply, root: Path, tmp_path: Path) -> None:
    """The file comes up into the layer, as it would where somebody links it in an overlay."""
    lower = tmp_path / "lower"
    (lower / "d").mkdir()
    (lower / "d").chmod(0o711)
    (lower / "d/file").write_bytes(b"x" * 100_000)
    os.chown(lower / "d/file", 5, 6)
    os.setxattr(lower / "d/file", "user.note", b"kept")
    (lower / "d/link").symlink_to("file")
    entry = hardlink("other/b", "d/file", mode=0o4750, uid=7, gid=8, mtime=1000)
    assert "error" not in apply_overlay(archive(entry, hardlink("c", "d/link", mode=0o777)))
    found = (root / "other/b").stat()
    assert found.st_ino == (root / "d/file").stat().st_ino
    assert (found.st_size, found.st_uid, found.st_mode & 0o7777) == (100_000, 7, 0o4750)
    assert os.getxattr(root / "d/file", "user.note") == b"kept"
    assert (root / "d").stat().st_mode & 0o7777 == 0o711
    assert os.readlink(root / "c") == "file"
    assert (lower / "d/file").stat().st_nlink == 1


@pytest.mark.parametrize("target", ["gone/x", "d", "escape/passwd", "nothing"])
def test_hard_links_to_what_is_no_file_below(
    apply_overlay: Apply, tmp_path: Path, target: str
) -> None:
    lower = tmp_path / "lower"
    for name in ("gone", "d"):
        (lower / name).mkdir()
        (lower / name / "x").write_text("x")
    (lower / "escape").symlink_to("/etc")
    error = apply_overlay(archive(member(".wh.gone"), hardlink("b", target)))["error"]
    assert error["code"] == 3
