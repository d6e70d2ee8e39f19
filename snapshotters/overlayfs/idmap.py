"""The id mapping labels of a snapshot (``0:100000:65536``: container id, host id, length)."""

from __future__ import annotations

from collections.abc import Mapping

from supervisord.contracts.errors import InvalidArgument
from supervisord.linux.idmap import extents

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"

_OPTIONS = (("uidmap", UID_LABEL), ("gidmap", GID_LABEL))


def mapped(labels: Mapping[str, str]) -> bool:
    """Whether a snapshot with these labels has mapped ids."""
    return UID_LABEL in labels or GID_LABEL in labels


def options(labels: Mapping[str, str]) -> list[str]:
    """The mount options that say the same."""
    return [f"{option}={labels[label]}" for option, label in _OPTIONS if label in labels]


def owner(labels: Mapping[str, str], uid: int, gid: int) -> tuple[int, int]:
    """The host's user and group for these of the container; ids without a map stay as they are,
    and those that a map leaves out become the container's root.

    Raises InvalidArgument for a malformed mapping, or one without the id 0."""
    return _host(UID_LABEL, labels, uid), _host(GID_LABEL, labels, gid)


def _host(label: str, labels: Mapping[str, str], id: int) -> int:
    if label not in labels:
        return id
    text = labels[label]
    parts = extents(text, f"labels: {label}")
    root = _find(parts, 0)
    if root is None:
        raise InvalidArgument(f"labels: {label}: {text!r} does not map the id 0")
    found = _find(parts, id)
    return root if found is None else found


def _find(parts: list[tuple[int, int, int]], id: int) -> int | None:
    for inside, outside, length in parts:
        if inside <= id < inside + length:
            return outside + id - inside
    return None
