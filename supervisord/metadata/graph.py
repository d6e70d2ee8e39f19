"""The references of one namespace, walked backwards: from a thing to the roots that keep it.

Rows are read once, at one moment. The rules are those of ``marking``, seen from the other end: what
a flat lease keeps is reached by flat edges only. Used by ``inspection`` in a thread.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from supervisord.contracts.errors import DataLoss

from . import conditions, container_records, nodes, references, sandbox_records
from . import labels as label_rules
from .marking import Outside
from .nodes import Node
from .references import Edge

TABLES = {
    nodes.CONTENT: ("blobs", "digest"),
    nodes.IMAGES: ("images", "name"),
    nodes.CONTAINERS: ("containers", "id"),
    nodes.SANDBOXES: ("sandboxes", "id"),
    nodes.LEASES: ("leases", "id"),
    nodes.INGESTS: ("ingests", "ref"),
}
"""By type, the table and the column of the key; snapshots have a table of their own."""

_RECORDS = {nodes.CONTAINERS: "a container", nodes.SANDBOXES: "a sandbox"}
_ROOT_COLUMNS = {
    nodes.LEASES: "expires_at, flat",
    nodes.IMAGES: "expires_at, 0",
    nodes.INGESTS: "expires_at, 0",
}
_EXPIRING = {
    nodes.LEASES: "a lease",
    nodes.IMAGES: "an image",
    nodes.INGESTS: "half-written",
}
_FIELDS = {
    (nodes.LEASES, nodes.LEASES): "held",
    (nodes.IMAGES, nodes.IMAGES): "target",
    (nodes.INGESTS, nodes.INGESTS): "expected",
    (nodes.CONTAINERS, nodes.CONTAINERS): "root filesystem",
}


class Root(NamedTuple):
    """Why a thing is a root, when that ends, and whether it keeps only what it names."""

    reason: str
    until: int | None = None
    flat: bool = False


class State(NamedTuple):
    """A thing, and whether it was reached from a flat lease."""

    node: Node
    flat: bool


@dataclass(frozen=True, slots=True)
class _Reference:
    edge: Edge
    owner: Node
    also: bool = False
    """It is no row of ``refs``: by a condition, or from outside."""

    def leads(self, source_flat: bool) -> bool | None:
        """Whether the target counts as reached from a flat lease; None if it is not reached."""
        edge = self.edge
        if self.also:
            return False if not source_flat or edge.source.kind == nodes.LEASES else None
        if source_flat and not edge.flat:
            return None
        return source_flat and edge.target.kind != nodes.INGESTS


class Graph:
    """All of one namespace at ``now``, in nanoseconds."""

    def __init__(
        self, connection: sqlite3.Connection, namespace: str, now: int, beside: Outside
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._now = now
        self._outside = {
            Node(nodes.outside(kind), resource.key): resource
            for kind, resource in beside.resources
            if resource.namespace == namespace
        }
        self._open = beside.open_ingests
        self._into: defaultdict[Node, list[_Reference]] = defaultdict(list)
        for reference in (*self._rows(), *self._conditional(), *self._from_outside()):
            self._into[reference.edge.target].append(reference)

    def _rows(self) -> Iterator[_Reference]:
        for row in self._connection.execute(
            "SELECT kind, key, to_kind, to_key, owner_kind, owner_key, flat FROM refs"
            " WHERE namespace = ?",
            (self._namespace,),
        ):
            kind, key, to_kind, to_key, owner_kind, owner_key, flat = row
            edge = Edge(Node(kind, key), Node(to_kind, to_key), bool(flat))
            yield _Reference(edge, Node(owner_kind, owner_key))

    def _conditional(self) -> Iterator[_Reference]:
        for namespace, kind, key, to_kind, to_key in self._connection.execute(
            conditions.MET, {"now": self._now}
        ):
            if namespace != self._namespace:
                continue
            owner = Node(kind, key)
            yield _Reference(Edge(owner, Node(to_kind, to_key)), owner, also=True)

    def _from_outside(self) -> Iterator[_Reference]:
        for node, resource in self._outside.items():
            if resource.lease:
                lease = Node(nodes.LEASES, resource.lease)
                yield _Reference(Edge(lease, node), lease, also=True)
            for edge in references.label_edges(node, resource.labels):
                yield _Reference(edge, node, also=True)

    def ways(self, target: Node) -> Iterator[tuple[Root, list[tuple[Node, str]]]]:
        """From each root, the nearest first, the shortest way to ``target``: things, each with
        why the one before keeps it."""
        below: dict[State, tuple[_Reference, State] | None] = {
            State(target, False): None,
            State(target, True): None,
        }
        waiting = deque(below)
        found: set[Node] = set()
        while waiting:
            state = waiting.popleft()
            root = None if state.node in found else self._root(state.node)
            if root is not None and root.flat == state.flat:
                found.add(state.node)
                yield root, self._path(root, state, below)
            for reference in self._into.get(state.node, ()):
                for flat in (False, True):
                    above = State(reference.edge.source, flat)
                    if reference.leads(flat) is state.flat and above not in below:
                        below[above] = reference, state
                        waiting.append(above)

    def _path(
        self, root: Root, state: State, below: Mapping[State, tuple[_Reference, State] | None]
    ) -> list[tuple[Node, str]]:
        path = [(state.node, root.reason)]
        while (step := below[state]) is not None:
            reference, state = step
            path.append((state.node, self._reason(reference)))
        return path

    # Why ---------------------------------------------------------------------------------------

    def _root(self, node: Node) -> Root | None:
        """Why the thing lives whatever refers to it."""
        if node in self._outside:
            return Root("in use") if self._outside[node].active else None
        if node.kind == nodes.INGESTS and (self._namespace, node.key) in self._open:
            return Root("being written")
        if node.kind in _RECORDS:
            return Root(_RECORDS[node.kind]) if self.exists(node) else None
        row = self._row(_ROOT_COLUMNS.get(node.kind, "root"), node)
        if row is None:
            return None
        if node.kind not in _ROOT_COLUMNS:
            return Root(self._root_label(node)) if row[0] else None
        expires, flat = row
        if expires is None and node.kind == nodes.INGESTS:
            return None  # only its lease keeps it
        if expires is not None and expires < self._now:
            return None
        return Root(_EXPIRING[node.kind], expires, bool(flat))

    def exists(self, node: Node) -> bool:
        """Whether there is such a thing."""
        return node in self._outside or self._row("1", node) is not None

    def _row(self, columns: str, node: Node) -> Any:
        """These columns of a thing's row; None if there is none."""
        if nodes.is_snapshot(node.kind):
            query = f"SELECT {columns} FROM snapshots WHERE namespace = ? AND key = ?"  # noqa: S608
            return self._connection.execute(
                f"{query} AND snapshotter = ?",
                (self._namespace, node.key, nodes.snapshotter(node.kind)),
            ).fetchone()
        if node.kind not in TABLES:
            return None
        table, column = TABLES[node.kind]
        query = f"SELECT {columns} FROM {table} WHERE namespace = ? AND {column} = ?"  # noqa: S608
        return self._connection.execute(query, (self._namespace, node.key)).fetchone()

    def _root_label(self, node: Node) -> str:
        labels = self._labels(node)
        return next(filter(lambda label: references.is_root({label: "1"}), labels), "a root")

    def _reason(self, reference: _Reference) -> str:
        edge, owner = reference.edge, reference.owner
        for label, value in self._labels(owner).items():
            made = references.label_edge(owner, label, value)
            if made is not None and made[:2] == edge[:2]:
                return label
            for row in conditions.rows(owner, {label: value}) if reference.also else ():
                if Node(row.kind, row.key) == edge.target:
                    return f"{label}={value}"
        if nodes.is_snapshot(edge.source.kind):
            return "parent"
        return _FIELDS.get((edge.source.kind, owner.kind), "held")

    def _labels(self, node: Node) -> Mapping[str, str]:
        """The labels of a thing that may refer to others; none where the record is damaged."""
        if node in self._outside:
            return self._outside[node].labels
        if node.kind in (nodes.LEASES, nodes.INGESTS):
            return {}
        row = self._row("record" if node.kind in _RECORDS else "labels", node)
        try:
            if row is None:
                return {}
            if node.kind == nodes.CONTAINERS:
                return dict(container_records.parse(row[0]).labels)
            if node.kind == nodes.SANDBOXES:
                return dict(sandbox_records.parse(row[0]).labels)
            return label_rules.unpack(row[0])
        except (DataLoss, ValueError):
            return {}
