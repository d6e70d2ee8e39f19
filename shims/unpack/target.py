"""Where a layer is extracted: chosen from the mounts, then made the root of this process.

A single overlay mount is not mounted: its upper directory is written directly, which is quicker
and lets whiteouts become marks (not in a user namespace, which cannot make them). A single writable
bind mount is its source. Everything else is mounted, in a mount namespace of our own on a directory
that all workers share, so that nothing leaks however the worker ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.snapshots import Mount
from supervisord.linux import syscalls
from supervisord.linux.mount import mount_all
from supervisord.linux.mount_options import split_lowerdir

from . import owners

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_VOLATILE = ("volatile", "fsync=volatile")


@dataclass(frozen=True, slots=True)
class Target:
    """An open root directory; ``marks`` names the xattr namespace for overlay marks, or is ""
    for a plain tree; ``lowers`` are open directories of the layers below, nearest first."""

    root: int
    marks: str = ""
    lowers: Sequence[int] = ()


def parse_mounts(values: object) -> list[Mount]:
    """Mounts from the arguments of a worker. Raises InvalidArgument."""
    if not isinstance(values, list) or not values:
        raise InvalidArgument("mounts: must not be empty")
    return [_mount(value) for value in values]


def _mount(value: object) -> Mount:
    if not isinstance(value, Mapping):
        raise InvalidArgument("mounts: each must be an object")
    return Mount(
        type=str(value.get("type", "")),
        source=str(value.get("source", "")),
        options=tuple(map(str, value.get("options", ()))),
        target=str(value.get("target", "")),
    )


def open_target(mounts: Sequence[Mount], mountpoint: str) -> Target:
    """Opens the target of an extraction. Raises InvalidArgument, Unknown (the mount failed)."""
    if owners.mapped(mounts):
        unshare_mounts()
        mounts = owners.as_stored(mounts)
    only = mounts[0] if len(mounts) == 1 else None
    if only is not None and only.type == "overlay" and not in_user_namespace():
        upper, lowers = overlay_layers(only.options)
        if upper:
            marks = "user" if "userxattr" in only.options else "trusted"
            return Target(open_folder(upper), marks, [open_folder(each) for each in lowers])
    if only is not None and only.type == "bind" and not only.target and _writable_bind(only):
        return Target(open_folder(only.source))
    mount_private(mounts, mountpoint)
    return Target(open_folder(mountpoint))


def overlay_layers(options: Sequence[str]) -> tuple[str, list[str]]:
    """The upper directory ("" for none) and the lower ones, nearest first."""
    upper = ""
    lowers: list[str] = []
    for option in options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = value
        elif key == "lowerdir":
            lowers = split_lowerdir(value)
    return upper, lowers


def enter(target: Target) -> None:
    """Makes the target the root of this process; nothing outside has a name from now on."""
    os.fchdir(target.root)
    os.chroot(".")
    os.chdir("/")
    os.umask(0)


def unshare_mounts() -> None:
    """A mount namespace of this process's own, from which nothing spreads to others."""
    syscalls.unshare(_CLONE_NEWNS)
    syscalls.mount(None, b"/", None, _MS_REC_PRIVATE, None)


def mount_private(mounts: Sequence[Mount], mountpoint: str) -> None:
    """Mounts all on ``mountpoint`` in a namespace of our own. ``volatile`` overlays are mounted
    without it, because their directories refuse a second mount afterwards."""
    unshare_mounts()
    mount_all([kept(mount) for mount in mounts], mountpoint)


def in_user_namespace() -> bool:
    """Whether we are root in a user namespace only."""
    try:
        mapping = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return mapping != ["0", "0", str(2**32 - 1)]


def kept(mount: Mount) -> Mount:
    """The mount without what must not be used for a short while (``volatile``)."""
    options = tuple(option for option in mount.options if option not in _VOLATILE)
    return Mount(mount.type, mount.source, options, mount.target)


def _writable_bind(mount: Mount) -> bool:
    return all(option in ("rbind", "bind", "rw") for option in mount.options)


def open_folder(path: str) -> int:
    """Raises InvalidArgument."""
    try:
        return os.open(path, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidArgument(f"mounts: {path!r} is not a directory") from None
