"""Snapshots on a kernel of its time, and on disks that count what projects take.

Runs inside the machine of ``tests/e2e/vm``: Linux 6.1 has no layers that are mounted nowhere, nor
``lowerdir+``; it has project quotas.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshotters.overlayfs import OverlaySnapshotter, Settings
from snapshotters.usage import disk_usage
from supervisord.contracts.snapshots import Mount
from supervisord.linux import quota
from supervisord.linux.mount import mount_all, unmount_all

FIRST = 1 << 20
LABELS = {
    "containerd.io/snapshot/uidmapping": "0:100000:65536",
    "containerd.io/snapshot/gidmapping": "0:100000:65536",
}
DISKS = {"ext4": ["-O", "quota,project", "-E", "quotatype=prjquota"], "xfs": []}

Work = Callable[[OverlaySnapshotter], Coroutine[Any, Any, None]]


def on(root: Path, settings: Settings, work: Work) -> None:
    """Runs ``work`` with the snapshotter of ``root`` open."""

    async def run() -> None:
        overlay = await OverlaySnapshotter.open(root, settings)
        try:
            await work(overlay)
        finally:
            await overlay.close()

    asyncio.run(run())


@contextmanager
def mounted(mounts: Any, target: Path) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    mount_all(mounts, str(target))
    try:
        yield target
    finally:
        unmount_all(str(target))


async def layers(overlay: OverlaySnapshotter, count: int) -> str:
    parent = ""
    for number in range(count):
        await overlay.prepare("key", parent, {})
        Path(overlay.root, "snapshots", str(number + 1), "fs", f"f{number}").touch()
        await overlay.commit(f"layer{number}", "key", {})
        parent = f"layer{number}"
    return parent


@pytest.mark.parametrize("count", [1, 150])
def test_mapped_layers_of_an_older_kernel(tmp_path: Path, count: int) -> None:
    async def work(overlay: OverlaySnapshotter) -> None:
        assert overlay.remaps_ids
        mounts = await overlay.prepare("a", await layers(overlay, count), LABELS)
        with mounted(mounts, tmp_path / "mnt") as root:
            assert len(os.listdir(root)) == count
            assert {path.stat().st_uid for path in (root, *root.iterdir())} == {100000}
            (root / "f0").write_text("mine")
        found = disk_usage(f"{overlay.root}/snapshots/{count + 1}/fs")
        assert found.inodes == 2
        assert Path(overlay.root, "snapshots/1/fs/f0").stat().st_uid == 0

    on(tmp_path / "root", Settings(sync_commit=False), work)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_many_layers_of_an_older_kernel(tmp_path: Path) -> None:
    async def work(overlay: OverlaySnapshotter) -> None:
        mounts = await overlay.prepare("a", await layers(overlay, 150), {})
        assert len(",".join(mounts[0].options)) > 4096
        with mounted(mounts, tmp_path / "mnt") as root:
            assert len(os.listdir(root)) == 150

    on(tmp_path / "root", Settings(sync_commit=False), work)


@pytest.fixture(params=DISKS)
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    image, kind = tmp_path / "image", request.param
    with image.open("wb") as out:
        out.truncate(320 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", *DISKS[kind], str(image)], check=True)
    with mounted([Mount(kind, str(image), ("loop", "prjquota"))], tmp_path / "disk") as volume:
        yield volume


def test_usage_as_the_disk_counts_it(tmp_path: Path, disk: Path) -> None:
    settings = Settings(project_quota=FIRST, sync_remove=True)

    async def work(overlay: OverlaySnapshotter) -> None:
        mounts = await overlay.prepare("a", await layers(overlay, 2), {})
        with mounted(mounts, tmp_path / "mnt") as root:
            (root / "d").mkdir()
            (root / "d/data").write_bytes(b"x" * (5 << 20))
            os.link(root / "d/data", root / "again")
            (root / "f0").write_text("copied up")
            (root / "f1").unlink()
            (root / "d").rename(root / "e")
            await check(overlay, "a", 3)
            (root / "again").unlink()
            (root / "e/data").unlink()
            await check(overlay, "a", 3)
        await overlay.commit("top", "a", {})
        assert await overlay.usage("top") == disk_usage(f"{overlay.root}/snapshots/3/fs")

    async def afterwards(overlay: OverlaySnapshotter) -> None:
        await overlay.prepare("b", "top", {})
        await check(overlay, "b", 4)
        assert projects(overlay) == {1: FIRST, 2: FIRST + 1, 3: FIRST + 2, 4: FIRST + 3}
        await overlay.remove("b")
        await overlay.remove("top")
        await overlay.prepare("c", "layer1", {})
        assert projects(overlay)[5] == FIRST + 2, "that of a removed one is taken again"
        await check(overlay, "c", 5)

    on(disk / "root", settings, work)
    on(disk / "root", settings, afterwards)


async def check(overlay: OverlaySnapshotter, key: str, id: int) -> None:
    folder = f"{overlay.root}/snapshots/{id}/fs"
    assert overlay._projects is not None
    deadline = time.monotonic() + 20
    while True:
        os.sync()  # what is not on the disk yet, the walk does not count either
        walked = disk_usage(folder)
        counted, told = overlay._projects.usage(folder), await overlay.usage(key)
        # xfs takes the inodes of removed files from the quota in the background.
        if (counted != walked and told == walked) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    assert counted != walked, "and the work"
    assert told == walked


def projects(overlay: OverlaySnapshotter) -> dict[int, int]:
    found = {}
    for name in os.listdir(overlay.root / "snapshots"):
        fd = os.open(f"{overlay.root}/snapshots/{name}/fs", os.O_RDONLY)
        try:
            found[int(name)] = quota.project_of(fd)
        finally:
            os.close(fd)
    return found
