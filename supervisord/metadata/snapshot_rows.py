"""The rows of snapshots: statements for the snapshot stores, the sweep and recovery."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supervisord.contracts import filters as filter_language
from supervisord.contracts.errors import NotFound
from supervisord.contracts.snapshots import Info, Kind

from . import labels as label_rules
from . import references
from .rows import fetched

SNAPSHOT_REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"
_COLUMNS = "key, backend, parent, labels, created_at, updated_at"
_BACKEND = re.compile(r"(?P<namespace>[^/]+)/(?P<number>[0-9]+)/(?P<key>.*)\Z", re.DOTALL)
_KINDS = {Kind.ACTIVE: "active", Kind.VIEW: "view", Kind.COMMITTED: "committed"}


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot as the metadata knows it; ``backend`` is its key there."""

    key: str
    backend: str
    parent: str
    labels: Mapping[str, str]
    created_at: int
    updated_at: int

    def over(self, below: Info) -> Info:
        """What clients see: our names, times and labels over the backend's."""
        return replace(
            below,
            name=self.key,
            parent=self.parent,
            created_at=self.created_at,
            updated_at=self.updated_at,
            labels={**below.labels, **self.labels},
        )


def find(
    connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str
) -> SnapshotRow | None:
    """One snapshot, if it exists."""
    raw = connection.execute(
        f"SELECT {_COLUMNS} FROM snapshots"  # noqa: S608
        " WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (namespace, snapshotter, key),
    ).fetchone()
    return None if raw is None else from_raw(raw)


def get(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> SnapshotRow:
    """Raises NotFound."""
    row = find(connection, namespace, snapshotter, key)
    if row is None:
        raise _not_found(key)
    return row


def backend_of(
    connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str
) -> tuple[str, int]:
    """The key in the backend and the time of creation; a damaged record will do.

    Raises NotFound."""
    found = connection.execute(
        "SELECT backend, created_at FROM snapshots"
        " WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (namespace, snapshotter, key),
    ).fetchone()
    if found is None:
        raise _not_found(key)
    backend, created_at = found
    return backend, created_at


def is_named(connection: sqlite3.Connection, snapshotter: str, backend: str) -> bool:
    """Whether some row, in any namespace, is of this snapshot of the backend."""
    row = connection.execute(
        "SELECT 1 FROM snapshots WHERE snapshotter = ? AND backend = ? LIMIT 1",
        (snapshotter, backend),
    ).fetchone()
    return row is not None


def _not_found(key: str) -> NotFound:
    return NotFound(f"snapshot {key} does not exist: not found")


def all_raw(
    connection: sqlite3.Connection, namespace: str, snapshotter: str
) -> Sequence[tuple[Any, ...]]:
    """All snapshots of a namespace, in order of key."""
    return fetched(
        connection,
        f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ?",  # noqa: S608
        (namespace, snapshotter),
        "key",
    )


def from_raw(raw: tuple[Any, ...]) -> SnapshotRow:
    """A row of ``all_raw``."""
    key, backend, parent, labels, created_at, updated_at = raw
    return SnapshotRow(key, backend, parent, label_rules.unpack(labels), created_at, updated_at)


def has_children(
    connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str
) -> bool:
    """Whether some snapshot names this one as its parent."""
    child = connection.execute(
        "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND parent = ? LIMIT 1",
        (namespace, snapshotter, key),
    ).fetchone()
    return child is not None


def put(connection: sqlite3.Connection, namespace: str, snapshotter: str, row: SnapshotRow) -> None:
    """Writes a row with its edges."""
    connection.execute(
        "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            snapshotter,
            row.key,
            row.backend,
            row.parent,
            label_rules.pack(row.labels),
            row.created_at,
            row.updated_at,
            references.is_root(row.labels),
        ),
    )
    node = references.Node(references.snapshots(snapshotter), row.key)
    references.replace(connection, namespace, node, edges(node, row), row.labels)


def edges(node: references.Node, row: SnapshotRow) -> list[references.Edge]:
    """What keeps what because of a snapshot, which is ``node``."""
    found = list(references.label_edges(node, row.labels))
    if row.parent:
        parent = references.Node(node.kind, row.parent)
        found.append(references.Edge(node, parent, flat=True))
    return found


def delete(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> None:
    """Deletes a row with its edges; the caller notes the removal in the backend."""
    connection.execute(
        "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
        (namespace, snapshotter, key),
    )
    node = references.Node(references.snapshots(snapshotter), key)
    references.drop(connection, namespace, node)


def inherited(label: str) -> bool:
    """Whether a label is passed on to the backend."""
    return label == SNAPSHOT_REF or label.startswith(_INHERITED)


def inherited_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that the backend gets."""
    return {key: value for key, value in labels.items() if inherited(key)}


def number(backend: str) -> int | None:
    """The number in a backend's key; None where it is not of our making."""
    match = _BACKEND.match(backend)
    return None if match is None else int(match["number"])


def committed_key(active: str, namespace: str, name: str) -> str:
    """The backend's key for what is committed from an active snapshot."""
    own = number(active)
    return f"{namespace}/{own if own is not None else 0}/{name}"


def adaptor(info: Info) -> filter_language.Adaptor:
    """The fields that a snapshot filter may name."""

    def field(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "kind" if info.kind in _KINDS:
                return _KINDS[info.kind], True
            case "name":
                return info.name, True
            case "parent":
                return info.parent, True
            case "labels":
                return filter_language.lookup(path[1:], info.labels)
        return "", False

    return field
