"""What is particular to the native snapshotter: whole copies, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from snapshotters.native import NativeSnapshotter
from snapshotters.native.copy import copy_tree
from snapshotters.trash import remove_tree
from supervisord.contracts.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from supervisord.contracts.snapshots import Mount
from supervisord.testing.trees import (
    both,
    chown,
    contents,
    device,
    file,
    folder,
    link,
    symlink,
    xattr,
)
from tests.disks import disk


@pytest.fixture
async def native(tmp_path: Path) -> AsyncIterator[NativeSnapshotter]:
    opened = await NativeSnapshotter.open(tmp_path / "root")
    yield opened
    await opened.close()


def test_copies_are_complete(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    both(
        folder("d", 0o1751),
        file("d/suid", "s", 0o4755),
        chown("d", 3, 4),
        link("d/suid", "d/hard"),
        symlink("nowhere", "d/sym"),
        chown("d/sym", 5, 6),
        link("d/sym", "d/sym2"),
        device("d/null", stat.S_IFCHR, 1, 3),
        device("d/fifo", stat.S_IFIFO, 0, 0),
        file("d/empty"),
        xattr("d/empty", "user.a", b"1"),
        xattr("d", "user.b", b"2"),
        file("d/cap"),
        xattr("d/cap", "security.capability", b"\x01\x00\x00\x02\x00\x20" + bytes(14)),
    )(source)
    os.utime(source / "d/sym", ns=(1, 2), follow_symlinks=False)
    os.utime(source / "d", ns=(3, 4_000_000_005))
    source.chmod(0o711)
    copy_tree(str(source), str(target))
    assert contents(target) == contents(source)
    for name in ("", "d", "d/sym", "d/suid"):
        assert (target / name).lstat().st_mtime_ns == (source / name).lstat().st_mtime_ns
    assert target.stat().st_mode & 0o7777 == 0o711


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name, parts in (("middle", [10 << 20]), ("ends", [0, 30 << 20]), ("none", [])):
        with open(source / name, "wb") as out:
            for part in parts:
                out.seek(part)
                out.write(b"data" * 2000)
            out.truncate(40 << 20)
    copy_tree(str(source), str(target))
    for name in ("middle", "ends", "none"):
        assert (target / name).stat().st_blocks < 200
        assert (target / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.blocks("it formats and mounts a file system")
@pytest.mark.parametrize(
    ("kind", "options", "shares"),
    [
        ("btrfs", (), True),
        ("xfs", ("-m", "reflink=1"), True),
        ("xfs", ("-m", "reflink=0"), False),
        ("ext4", (), False),
        ("tmpfs", (), False),
    ],
)
def test_copies_on_each_file_system(
    tmp_path: Path, kind: str, options: tuple[str, ...], shares: bool
) -> None:
    with disk(tmp_path / "disk", kind, *options, size=400 << 20) as at:
        source = at / "source"
        source.mkdir()
        both(
            folder("d", 0o2755),
            file("d/setgid", "s", 0o2755),
            chown("d/setgid", 0, 9),
            file("small", "x" * 5000),
            symlink("small", "link"),
            device("d/zero", stat.S_IFCHR, 1, 5),
            xattr("small", "trusted.a", b"1"),
        )(source)
        (source / "large").write_bytes(os.urandom(20 << 20))
        with open(source / "sparse", "wb") as out:
            out.seek(50 << 20)
            out.write(b"end")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(source / "sock"))
        before = used(at)
        (at / "target").mkdir()
        copy_tree(str(source), str(at / "target"))
        assert contents(at / "target") == contents(source)
        assert (at / "target" / "sparse").stat().st_blocks * 512 < 1 << 20
        assert (used(at) - before < 10 << 20) == shares


def used(path: Path) -> int:
    os.sync()
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.ENOSYS])
def test_a_kernel_that_copies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "large").write_bytes(os.urandom(3 << 20))
    copy_tree(str(source), str(target))
    assert contents(target) == contents(source)


def test_a_swapped_folder_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that still writes to the source makes a link of a folder that is next."""
    source, target, secret = (tmp_path / name for name in ("source", "target", "secret"))
    for each in (source, target, secret, source / "d"):
        each.mkdir()
    (secret / "key").write_text("secret")
    real = os.mkdir

    def swap(path: bytes, *arguments: Any, **options: Any) -> None:
        real(path, *arguments, **options)
        if path == b"d":
            (source / "d").rmdir()
            (source / "d").symlink_to(secret)

    monkeypatch.setattr(os, "mkdir", swap)
    with pytest.raises(OSError):
        copy_tree(str(source), str(target))
    assert not list(target.rglob("key"))


def test_paths_as_long_as_a_layer_may_have(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    path = b"/".join([b"n" * 200] * 20)  # with that of the source more than the kernel takes
    top = os.open(source, os.O_RDONLY)
    at = os.open(target, os.O_RDONLY)
    for depth in range(1, 21):
        os.mkdir(path[: depth * 201 - 1], dir_fd=top)
    os.symlink("x", path + b"/link", dir_fd=top)
    copy_tree(str(source), str(target))
    assert os.readlink(path + b"/link", dir_fd=at) == b"x"
    os.close(top)
    os.close(at)
    assert remove_tree(source)
    assert remove_tree(target)


async def test_lost_directories(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    native = await NativeSnapshotter.open(tmp_path / "root")
    await native.prepare("a", "", {})
    await native.commit("base", "a", {})
    await native.prepare("empty", "", {})
    await native.prepare("full", "base", {})
    await native.view("view", "base", {})
    await native.close()
    at = tmp_path / "root" / "snapshots"
    for number in (2, 3):
        (at / str(number)).rmdir()
    native = await NativeSnapshotter.open(tmp_path / "root")
    assert (at / "2").stat().st_mode & 0o7777 == 0o755
    assert "snapshot full: its directory 3 is gone" in caplog.text
    with pytest.raises(NotFound, match="snapshot 'full': its directory is gone"):
        await native.usage("full")
    (at / "1").rmdir()
    with pytest.raises(DataLoss, match="parent snapshot 'base': its directory 1 is gone"):
        await native.prepare("new", "base", {})
    assert sorted(os.listdir(at)) == ["2"]
    await native.close()


async def test_mounts(native: NativeSnapshotter, tmp_path: Path) -> None:
    at = f"{tmp_path}/root/snapshots"
    assert await native.prepare("a", "", {}) == [Mount("bind", f"{at}/1", ("rbind", "rw"))]
    await native.commit("b", "a", {})
    assert await native.view("c", "b", {}) == [Mount("bind", f"{at}/1", ("rbind", "ro"))]
    assert await native.view("d", "", {}) == [Mount("bind", f"{at}/3", ("rbind", "ro"))]
    assert await native.prepare("e", "b", {}) == [Mount("bind", f"{at}/4", ("rbind", "rw"))]


async def test_a_parent_stays_while_it_is_copied(native: NativeSnapshotter) -> None:
    (mount,) = await native.prepare("a", "", {})
    for number in range(500):
        (Path(mount.source) / str(number)).write_text("x")
    await native.commit("base", "a", {})
    copying = asyncio.ensure_future(native.prepare("b", "base", {}))
    again = asyncio.ensure_future(native.prepare("b", "base", {}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        await native.remove("base")
    (mount,) = await copying
    assert len(os.listdir(mount.source)) == 500
    with pytest.raises(AlreadyExists):
        await again
    await native.remove("b")
    await native.remove("base")
    await native.cleanup()
    assert os.listdir(native.root / "snapshots") == []


async def test_a_cleanup_waits_for_a_removal_under_way(native: NativeSnapshotter) -> None:
    (mount,) = await native.prepare("a", "", {})
    for number in range(2000):
        (Path(mount.source) / str(number)).write_text("x")
    await native.remove("a")
    await native.cleanup()
    assert os.listdir(native.root / "snapshots") == []
