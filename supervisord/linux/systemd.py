"""Control groups that systemd makes: whether it runs here, and where it puts a group.

With systemd as the maker of groups, ``linux.cgroupsPath`` of a container's spec is no path but
``SLICE:PREFIX:NAME``: the scope ``PREFIX-NAME.scope`` in a slice whose name tells its place
(systemd.slice(5): every dash is a step down).
"""

from __future__ import annotations

import os

from supervisord.contracts.errors import InvalidArgument

_BOOTED = "/run/systemd/system"
_DEFAULT_SLICE = "system.slice"
_SUFFIX = ".slice"


def is_running(booted: str = _BOOTED) -> bool:
    """Whether systemd is the init of this machine, as sd_booted(3) tells it."""
    return os.path.isdir(booted)  # noqa: PTH112 - shims use this, and have no pathlib


def group_of(cgroups_path: str) -> str:
    """The path below the hierarchy's root that a ``cgroupsPath`` stands for.

    Raises InvalidArgument: another form, or a slice that systemd would not take."""
    parts = cgroups_path.split(":")
    if len(parts) != 3 or "/" in cgroups_path or not parts[2]:
        raise InvalidArgument(
            "spec: linux.cgroupsPath must be SLICE:PREFIX:NAME where systemd makes the groups, "
            f"not {cgroups_path!r}"
        )
    slice, prefix, name = parts
    if name.endswith(_SUFFIX):
        unit = name
    else:
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return f"{_folder_of(slice or _DEFAULT_SLICE)}/{unit}"


def _folder_of(slice: str) -> str:
    if slice == f"-{_SUFFIX}":
        return ""
    name = slice.removesuffix(_SUFFIX)
    steps = name.split("-")
    if name == slice or not all(steps):
        raise InvalidArgument(f"spec: linux.cgroupsPath: {slice!r} is no name of a slice")
    return "".join(f"/{'-'.join(steps[: at + 1])}{_SUFFIX}" for at in range(len(steps)))
