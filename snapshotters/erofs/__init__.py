"""The erofs snapshotter: committed layers are read-only images, stacked by overlayfs."""

from .snapshotter import ErofsSnapshotter

__all__ = ["ErofsSnapshotter"]
