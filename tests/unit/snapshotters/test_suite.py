"""The conformance suite over the snapshotters that we ship, in the ways that they are mounted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from snapshotters import index
from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter, Settings
from supervisord.contracts.errors import Unknown
from supervisord.contracts.snapshots import Mount, Snapshotter
from supervisord.linux.mount import mount_all
from supervisord.testing import SnapshotterSuite, mounting
from tests.disks import disk


class TestOverlayfs(SnapshotterSuite):
    renames_lower_directories = False
    rebases = True

    async def open(self, root: Path) -> Snapshotter:
        return await OverlaySnapshotter.open(root)


class WithOptions(SnapshotterSuite):
    """As mounted by other options."""

    renames_lower_directories = False
    rebases = True
    ways = ("direct",)
    many_layers = 16
    options: ClassVar[Sequence[str]]

    async def open(self, root: Path) -> Snapshotter:
        return await OverlaySnapshotter.open(root, Settings(mount_options=self.options))


class TestOverlayfsIndex(WithOptions):
    options = ("index=on", "nfs_export=on", "xino=on")

    @pytest.fixture(autouse=True)
    def _patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With an index the kernel refuses a layer of an overlay that is still mounted anywhere: in
        any mount namespace that was made meanwhile, too."""

        def patient(mounts: Sequence[Mount], target: str) -> None:
            deadline = time.monotonic() + 20
            while True:
                try:
                    return mount_all(mounts, target)
                except Unknown as error:
                    if "busy" not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)  # in a thread; nobody tells when it is over

        monkeypatch.setattr(mounting, "mount_all", patient)


class TestOverlayfsMetacopy(WithOptions):
    renames_lower_directories = True
    options = ("redirect_dir=on", "metacopy=on")


class TestOverlayfsUserXattr(WithOptions):
    options = ("userxattr",)


class TestOverlayfsVolatile(WithOptions):
    options = ("volatile",)


class Mapped(OverlaySnapshotter):
    """All ids are mapped, each to itself: everything must look as without."""

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        maps = ("uidmap=0:0:4294967295", "gidmap=0:0:4294967295")
        return [replace(each, options=(*maps, *each.options)) for each in super()._mounts(chain)]


class TestOverlayfsMapped(WithOptions):
    many_layers = 128

    async def open(self, root: Path) -> Snapshotter:
        return await Mapped.open(root)


class TestNative(SnapshotterSuite):
    ways = ("direct", "daemon")  # which has the others in it
    many_layers = 16  # each is a copy of all below

    async def open(self, root: Path) -> Snapshotter:
        return await NativeSnapshotter.open(root)


class OnADisk(SnapshotterSuite):
    """On another file system than that of the machine."""

    ways = ("direct",)
    many_layers = 4
    kind: ClassVar[str]

    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[Path]:
        with disk(tmp_path / "disk", self.kind, size=400 << 20) as volume:
            yield volume / "root"

    async def open(self, root: Path) -> Snapshotter:
        return await NativeSnapshotter.open(root, sync_remove=True)


class TestNativeOnBtrfs(OnADisk):
    kind = "btrfs"


class TestNativeOnXfs(OnADisk):
    kind = "xfs"


class TestNativeOnTmpfs(OnADisk):
    kind = "tmpfs"
