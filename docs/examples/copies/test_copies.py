"""The suite that every snapshotter passes. It mounts, so it needs root."""

from __future__ import annotations

from pathlib import Path

from copies_snapshotter import CopiesSnapshotter

from supervisord.testing import SnapshotterSuite


class TestCopies(SnapshotterSuite):
    many_layers = 16  # each is a copy of all below

    async def open(self, root: Path) -> CopiesSnapshotter:
        return await CopiesSnapshotter.open(root)
