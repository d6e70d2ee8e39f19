"""The native snapshotter: every snapshot is a whole copy; works on any filesystem."""

from .snapshotter import NativeSnapshotter

__all__ = ["NativeSnapshotter"]
