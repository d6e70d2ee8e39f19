"""The conformance suite over the snapshotters that we ship."""

from __future__ import annotations

from pathlib import Path

from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.snapshots import Snapshotter
from supervisord.testing import SnapshotterSuite


class TestOverlayfs(SnapshotterSuite):
    renames_lower_directories = False
    rebases = True

    async def open(self, root: Path) -> Snapshotter:
        return await OverlaySnapshotter.open(root)


class TestNative(SnapshotterSuite):
    many_layers = 16  # each is a copy of all below

    async def open(self, root: Path) -> Snapshotter:
        return await NativeSnapshotter.open(root)
