"""Device nodes of the host for ``--device`` and ``--privileged``."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ..errors import CliError

# Folders of /dev that hold something else than devices, or the container's own.
_SKIPPED = {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}


def find(path: str) -> list[dict[str, Any]]:
    """The device at ``path``, or all below it. Raises CliError for what is not a device."""
    try:
        if not Path(path).is_dir():
            return [_device(path)]
        found = []
        for entry in sorted(os.scandir(path), key=lambda item: item.name):
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIPPED:
                    found += find(entry.path)
            elif entry.name != "console" and _is_device(entry.path):
                found.append(_device(entry.path))
        return found
    except OSError as error:
        raise CliError(f"device {path}: {(error.strerror or str(error)).lower()}") from None


def allow(device: dict[str, Any], access: str = "rwm") -> dict[str, Any]:
    """The device cgroup rule that lets a container use a device."""
    return {
        "allow": True,
        "type": device["type"],
        "major": device["major"],
        "minor": device["minor"],
        "access": access,
    }


def _is_device(path: str) -> bool:
    mode = os.lstat(path).st_mode
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _device(path: str) -> dict[str, Any]:
    status = os.lstat(path)
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        raise CliError(f"device {path}: not a device node")
    return {
        "path": path,
        "type": kind,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
