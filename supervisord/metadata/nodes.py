"""What garbage collection calls a thing, and how it reads the times in its labels."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

CONTENT = "content"
INGESTS = "ingests"
IMAGES = "images"
CONTAINERS = "containers"
SANDBOXES = "sandboxes"
LEASES = "leases"
_SNAPSHOTS = "snapshots/"
_OUTSIDE = "outside/"
_MOST = (1 << 63) - 1

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?P<fraction>\.\d+)?(?P<zone>[Zz]|[+-]\d\d:\d\d)\Z"
)


class Node(NamedTuple):
    """A resource in one namespace: the type that a lease would name it by, and its key."""

    kind: str
    key: str


def snapshots(snapshotter: str) -> str:
    """The type of the snapshots of one snapshotter."""
    return _SNAPSHOTS + snapshotter


def is_snapshot(kind: str) -> bool:
    """Whether it is the type of some snapshotter's snapshots."""
    return kind.startswith(_SNAPSHOTS)


def snapshotter(kind: str) -> str:
    """The snapshotter of such a type."""
    return kind.removeprefix(_SNAPSHOTS)


def outside(kind: str) -> str:
    """The type of resources that are no rows (``contracts.collectible``)."""
    return _OUTSIDE + kind


def is_outside(kind: str) -> bool:
    """Whether it is the type of resources that are no rows."""
    return kind.startswith(_OUTSIDE)


def word(kind: str) -> str:
    """What people call the type: ``snapshots/overlayfs``, ``mount``."""
    return kind.removeprefix(_OUTSIDE)


def nanoseconds(value: str) -> int | None:
    """An RFC 3339 time since the epoch; None if it is none. What a row cannot hold becomes the
    last time that it can (in 2262), or the first (in 1677)."""
    match = _RFC3339.match(value)
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(value.replace(match["fraction"] or ".", "", 1).upper())
        fraction = int((match["fraction"] or ".0")[1:10].ljust(9, "0"))
        exact = int(whole.timestamp()) * 1_000_000_000 + fraction
        return min(max(exact, -_MOST), _MOST)
    except (ValueError, OverflowError):
        return None
