"""The btrfs snapshotter: every snapshot is a subvolume, made from its parent's in one call."""

from .snapshotter import BtrfsSnapshotter

__all__ = ["BtrfsSnapshotter"]
