"""The conformance suite over the snapshotters that we ship."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.snapshots import Snapshotter
from tests.conformance.snapshotters.suite import SnapshotterSuite


class TestOverlayfs(SnapshotterSuite):
    renames_lower_directories = False

    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        opened = await OverlaySnapshotter.open(tmp_path / "root")
        yield opened
        await opened.close()


class TestNative(SnapshotterSuite):
    many_layers = 16  # each is a copy of all below

    @pytest.fixture
    async def snapshotter(self, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        opened = await NativeSnapshotter.open(tmp_path / "root")
        yield opened
        await opened.close()
