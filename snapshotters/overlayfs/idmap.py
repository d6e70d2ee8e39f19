"""The id mapping labels of a snapshot (``0:100000:65536``: container id, host id, length)."""

from __future__ import annotations

from collections.abc import Mapping

from supervisord.contracts.errors import InvalidArgument

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"


def root_owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The host's user and group for the container's root; None without mapping labels.

    Raises InvalidArgument for a malformed mapping, or one without the id 0."""
    if UID_LABEL not in labels and GID_LABEL not in labels:
        return None
    return _host_root(UID_LABEL, labels), _host_root(GID_LABEL, labels)


def _host_root(label: str, labels: Mapping[str, str]) -> int:
    text = labels.get(label, "")
    for extent in text.split(","):
        parts = extent.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise InvalidArgument(f"labels: {label}: {text!r} is not CONTAINER:HOST:LENGTH")
        inside, outside, length = map(int, parts)
        if inside == 0 and length:
            return outside
    raise InvalidArgument(f"labels: {label}: {text!r} does not map the id 0")
