"""The suite of all snapshotters over the wire: on those that the daemons serve themselves.

On Debian's containerd it shows that the suite asks for nothing that containerd does not do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from supervisord.contracts.snapshots import Snapshotter
from supervisord.proxy.channel import Channel
from supervisord.proxy.snapshotter import ProxySnapshotter
from supervisord.testing import SnapshotterSuite

from .wire import Wire


class OverTheWire(SnapshotterSuite):
    """In the test's namespace, of whatever daemon."""

    name = ""
    keeps_root_mode = False

    @pytest_asyncio.fixture
    async def snapshotter(self, wire: Wire) -> AsyncIterator[Snapshotter]:  # type: ignore[override]
        client = ProxySnapshotter(
            Channel(wire.address), self.name, seconds=60.0, namespace=wire.namespace, own=True
        )
        yield client
        await client.close()

    test_it_is_all_there_after_a_restart = None  # type: ignore[assignment]  # nobody opens it here


class TestOverlayfs(OverTheWire):
    name = "overlayfs"
    renames_lower_directories = False


class TestNative(OverTheWire):
    name = "native"
    many_layers = 8  # each is a copy of all below

    async def test_only_active_ones_are_committed(  # type: ignore[override]
        self, snapshotter: Snapshotter, wire: Wire
    ) -> None:
        if wire.ours:  # containerd's looks for the folder of a view first, which has none
            await super().test_only_active_ones_are_committed(snapshotter)
