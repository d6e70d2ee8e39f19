"""What this kernel's overlayfs needs and offers under a directory; asked once, at the start."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

_INDEX = Path("/sys/module/overlay/parameters/index")
_FILESYSTEMS = Path("/proc/filesystems")


def overlay_options(root: str, configured: Sequence[str]) -> list[str]:
    """The options to add to overlay mounts under ``root``, unless they are configured already.

    ``index=off`` where the kernel has the index feature (with it, layers shared by several
    mounts are refused); ``userxattr`` inside a user namespace, where trusted xattrs are not to
    be had (kernel 5.11 on, but not on tmpfs)."""
    keys = {option.partition("=")[0] for option in configured}
    options = []
    if "userxattr" not in keys and needs_userxattr(root):
        options.append("userxattr")
    if "index" not in keys and _INDEX.exists():
        options.append("index=off")
    return options


def supported() -> bool:
    """Whether the kernel knows overlayfs, or has a module that it may load for a mount."""
    if re.search(r"^nodev\s+overlay$", _FILESYSTEMS.read_text(), re.MULTILINE):
        return True
    modules = Path("/lib/modules") / os.uname().release
    return any(modules.glob("kernel/fs/overlayfs/overlay.ko*"))


def needs_userxattr(root: str) -> bool:
    """Whether overlay metadata must go to user xattrs."""
    return in_user_namespace() and _kernel() >= (5, 11) and not _on_tmpfs(root)


def in_user_namespace() -> bool:
    """Whether our user ids are mapped, so that we are not the machine's root."""
    try:
        mapping = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return mapping != ["0", "0", str(2**32 - 1)]


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _on_tmpfs(root: str) -> bool:
    device = Path(root).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.startswith("tmpfs ")
    return False
