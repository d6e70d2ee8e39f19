"""What keeps what alive: the edges of garbage collection, as rows of ``refs``.

Stores call ``replace`` for the edges that follow from a thing's fields and labels, whenever they
write it, and ``hold``/``release`` for what a lease keeps. ``marking`` walks the edges.

The labels are containerd's: ``containerd.io/gc.ref.content[.X|/X]`` and ``gc.ref.image`` name a
digest or an image, ``gc.ref.snapshot.NAME[/X]`` a snapshot, ``gc.ref.KIND`` what is outside of the
metadata (``contracts.collectible``); ``gc.bref.*`` makes the labelled thing live as long as the one
that the label names; ``gc.root`` makes it a root; ``gc.expire`` (RFC 3339) ends a lease or an
image; ``gc.cond.*`` are explained in ``conditions``.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from supervisord.contracts.errors import NotFound
from supervisord.contracts.scope import Scope

from . import conditions
from .nodes import CONTAINERS as CONTAINERS
from .nodes import CONTENT as CONTENT
from .nodes import IMAGES as IMAGES
from .nodes import INGESTS as INGESTS
from .nodes import LEASES as LEASES
from .nodes import SANDBOXES as SANDBOXES
from .nodes import Node as Node
from .nodes import nanoseconds, outside
from .nodes import snapshots as snapshots

log = logging.getLogger(__name__)

_PREFIX = "containerd.io/gc."
_ROOT = "containerd.io/gc.root"
EXPIRE = "containerd.io/gc.expire"
_FLAT = "containerd.io/gc.flat"
_FORWARD = {"content": CONTENT, "image": IMAGES}
_BACK = {**_FORWARD, "container": CONTAINERS}
_LABEL = re.compile(
    r"containerd\.io/gc\.(?P<back>b?)ref\."
    r"(?:snapshot\.(?P<snapshotter>[^/]*)(?:/.*)?|(?P<kind>[^./]+)(?:[./].*)?)\Z",
    re.DOTALL,
)
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Edge(NamedTuple):
    """``source`` keeps ``target`` alive; with ``flat`` also for a lease that keeps only what it
    names."""

    source: Node
    target: Node
    flat: bool = False


def is_root(labels: Mapping[str, str]) -> bool:
    """Whether the thing is kept whatever refers to it."""
    return any(key.startswith(_ROOT) for key in labels)


def is_flat(labels: Mapping[str, str]) -> bool:
    """Whether a lease keeps only what it names."""
    return _FLAT in labels


def expiry(labels: Mapping[str, str], thing: str) -> int | None:
    """When the thing ends, in nanoseconds; None for never, and for a value that is no RFC 3339
    time, which is reported and not counted."""
    value = labels.get(EXPIRE)
    if value is None:
        return None
    when = nanoseconds(value)
    if when is None:
        log.info("%s: the expiration %r is no RFC 3339 time: ignored", thing, value)
    return when


def expires(labels: Mapping[str, str]) -> bool:
    """Whether a time is set, be it one that counts or not."""
    return EXPIRE in labels


def label_edge(node: Node, label: str, value: str) -> Edge | None:
    """The edge that one label of a thing makes."""
    match = _LABEL.match(label) if label.startswith(_PREFIX) else None
    if match is None:
        return None
    if match["snapshotter"] is not None:
        other = Node(snapshots(match["snapshotter"]), value)
    elif not match["back"]:
        other = Node(_FORWARD.get(match["kind"]) or outside(match["kind"]), value)
    elif match["kind"] in _BACK:
        other = Node(_BACK[match["kind"]], value)
    else:
        return None
    return Edge(other, node) if match["back"] else Edge(node, other)


def label_edges(node: Node, labels: Mapping[str, str]) -> Iterator[Edge]:
    """The edges that the labels of a thing make."""
    for label, value in labels.items():
        edge = label_edge(node, label, value)
        if edge is not None:
            yield edge


def replace(
    connection: sqlite3.Connection,
    namespace: str,
    owner: Node,
    edges: Iterable[Edge],
    labels: Mapping[str, str] = _NO_LABELS,
) -> None:
    """Makes these the edges that ``owner`` accounts for, with what its labels say of conditions."""
    drop(connection, namespace, owner)
    insert(connection, namespace, owner, edges, labels)


def insert(
    connection: sqlite3.Connection,
    namespace: str,
    owner: Node,
    edges: Iterable[Edge],
    labels: Mapping[str, str] = _NO_LABELS,
) -> None:
    """The same for an owner that is new: it has none yet."""
    rows = [(namespace, *edge.source, *edge.target, *owner, edge.flat) for edge in edges]
    if rows:
        connection.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    conditions.insert(connection, namespace, owner, labels)


def drop(connection: sqlite3.Connection, namespace: str, owner: Node) -> None:
    """Forgets the edges that ``owner`` accounts for; its row is going."""
    connection.execute(
        "DELETE FROM refs WHERE namespace = ? AND owner_kind = ? AND owner_key = ?",
        (namespace, *owner),
    )
    conditions.delete(connection, namespace, owner)


def hold(connection: sqlite3.Connection, scope: Scope, node: Node) -> bool:
    """Adds a resource to the scope's lease; False where the scope has none.

    Raises NotFound if the lease does not exist."""
    if not scope.lease:
        return False
    require_lease(connection, scope)
    add(connection, scope.namespace, scope.lease, node)
    return True


def require_lease(connection: sqlite3.Connection, scope: Scope) -> None:
    """Raises NotFound if the scope names a lease that does not exist."""
    found = connection.execute(
        "SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (scope.namespace, scope.lease)
    ).fetchone()
    if scope.lease and found is None:
        raise NotFound(f'lease "{scope.lease}" does not exist: not found')


def release(connection: sqlite3.Connection, scope: Scope, node: Node) -> None:
    """Takes a resource from the scope's lease, if there is one."""
    if scope.lease:
        remove(connection, scope.namespace, scope.lease, node)


def add(connection: sqlite3.Connection, namespace: str, lease: str, node: Node) -> None:
    """Adds a resource to an existing lease."""
    connection.execute(
        "INSERT OR IGNORE INTO refs VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
        (namespace, LEASES, lease, *node, LEASES, lease),
    )


def remove(connection: sqlite3.Connection, namespace: str, lease: str, node: Node) -> None:
    """Takes a resource from a lease."""
    connection.execute(
        "DELETE FROM refs WHERE namespace = ? AND kind = ? AND key = ? AND to_kind = ?"
        " AND to_key = ? AND owner_kind = ? AND owner_key = ?",
        (namespace, LEASES, lease, *node, LEASES, lease),
    )


def held(connection: sqlite3.Connection, namespace: str, lease: str) -> list[Node]:
    """What a lease keeps, in order of type and key."""
    rows = connection.execute(
        "SELECT to_kind, to_key FROM refs WHERE namespace = ? AND kind = ? AND key = ?"
        " AND owner_kind = ? AND owner_key = ? ORDER BY to_kind, to_key",
        (namespace, LEASES, lease, LEASES, lease),
    )
    return [Node(kind, key) for kind, key in rows]
