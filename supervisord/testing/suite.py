"""One suite for all snapshotters: the rules of ``contracts.snapshots.Snapshotter``, tried out."""

from __future__ import annotations

from .labels import Labels
from .layers import Layers
from .life import Life
from .names import Names


class SnapshotterSuite(Life, Labels, Layers, Names):
    """Subclass it, name the subclass ``Test...``, and say how to open the snapshotter::

        class TestZfs(SnapshotterSuite):
            async def open(self, root):
                return await Zfs.open(root)

    Every test then runs in each of ``ways``. They mount what the snapshotter answers, so they need
    root. What a snapshotter cannot do by its nature it says with the other class attributes.
    """
