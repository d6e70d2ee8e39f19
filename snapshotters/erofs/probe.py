"""What this kernel can do with erofs; asked once, at the start."""

from __future__ import annotations

import os
import re
from pathlib import Path

from snapshotters.overlayfs.probe import kernel


def supported() -> bool:
    """Whether the kernel knows erofs, or has a module that it may load for a mount."""
    known = Path("/proc/filesystems").read_text()
    if re.search(r"^\terofs$", known, re.MULTILINE):
        return True
    modules = Path("/lib/modules") / os.uname().release
    return any(modules.glob("kernel/fs/erofs/erofs.ko*"))


def maps_ids() -> bool:
    """Whether layers can have their owners mapped: each is a mount of its own, and overlayfs takes
    those by descriptors only."""
    return kernel() >= (6, 15)
