"""What is particular to the native snapshotter: whole copies, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotters.native import NativeSnapshotter
from snapshotters.native.copy import copy_tree
from supervisord.contracts.errors import AlreadyExists, FailedPrecondition
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
