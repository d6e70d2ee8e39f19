"""The overlayfs snapshotter: one directory of changes per snapshot, stacked by the kernel."""

from .snapshotter import OverlaySnapshotter, Settings

__all__ = ["OverlaySnapshotter", "Settings"]
