"""Layers: applied to mounts, and computed from them. The work is done in unpack workers; this room
knows media types, content and descriptors. Used by the diff service and the image unpacker."""

from .differ import Differ
from .processors import configured

__all__ = ["Differ", "configured"]
