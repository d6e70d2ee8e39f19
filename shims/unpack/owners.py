"""Snapshots whose owners are mapped, with the owners that their layers have.

A container in a user namespace writes files of the host's users into its upper folder, while the
layers below keep those of the image. A layer must have the image's throughout, so the upper folder
is seen by the map the other way round: in a mount namespace of our own it covers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from supervisord.contracts.snapshots import Mount

_MAPS = ("uidmap", "gidmap")


def mapped(mounts: Sequence[Mount]) -> bool:
    """Whether any of them maps owners."""
    return any(_maps(mount) for mount in mounts)


def as_stored(mounts: Sequence[Mount]) -> list[Mount]:
    """The same without maps. To be called in a mount namespace of our own, which it changes.

    Raises InvalidArgument, OSError."""
    return [_as_stored(mount) for mount in mounts]


def _as_stored(mount: Mount) -> Mount:
    maps = _maps(mount)
    if not maps:
        return mount
    options = tuple(option for option in mount.options if _key(option) not in _MAPS)
    upper = next((o.partition("=")[2] for o in options if _key(o) == "upperdir"), "")
    if mount.type == "overlay" and upper:
        from supervisord.linux import idmap  # what few need is not in every shim

        inverse = {name: _inverse(text, name) for name, text in maps.items()}
        with idmap.user_namespace(inverse.get("uidmap", ""), inverse.get("gidmap", "")) as userns:
            idmap.bind(upper, upper, 0, userns)
    return replace(mount, options=options)


def _maps(mount: Mount) -> dict[str, str]:
    found = (option.partition("=") for option in mount.options)
    return {key: value for key, _, value in found if key in _MAPS and value}


def _key(option: str) -> str:
    return option.partition("=")[0]


def _inverse(text: str, option: str) -> str:
    from supervisord.linux.idmap import extents

    parts = extents(text, option)
    return ",".join(f"{outside}:{inside}:{length}" for inside, outside, length in parts)
