"""What nothing keeps: one recursive query over ``refs``, from the roots.

Roots are leases and images that have not expired, containers, sandboxes, ingests that have not
expired, what carries ``gc.root``, and what is active outside of the metadata. Used by the sweep, by
its preview, and wherever it is to be explained.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from supervisord.contracts.collectible import Collectible

from . import conditions, references
from .nodes import LEASES, Node, is_outside, is_snapshot, outside

PIECE = 512
"""Records that one write deletes."""

# The key comes first wherever rows are compared: it is what they differ in. ``flat`` is set for
# what a flat lease keeps: from there only flat edges are followed, except from an ingest, which
# keeps its blob whole. ``also`` are edges that are no rows of ``refs``.
_LIVE = """
WITH RECURSIVE also(namespace, kind, key, to_kind, to_key) AS MATERIALIZED (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
            json_extract(value, '$[3]'), json_extract(value, '$[4]')
        FROM json_each(:edges)
    UNION ALL {met}
), live(key, kind, namespace, flat) AS (
    SELECT id, 'leases', namespace, flat FROM leases
        WHERE expires_at IS NULL OR expires_at >= :now
    UNION SELECT name, 'images', namespace, 0 FROM images
        WHERE expires_at IS NULL OR expires_at >= :now
    UNION SELECT id, 'containers', namespace, 0 FROM containers
    UNION SELECT id, 'sandboxes', namespace, 0 FROM sandboxes
    UNION SELECT ref, 'ingests', namespace, 0 FROM ingests WHERE expires_at >= :now
    UNION SELECT digest, 'content', namespace, 0 FROM blobs WHERE root
    UNION SELECT key, 'snapshots/' || snapshotter, namespace, 0 FROM snapshots WHERE root
    UNION SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
            json_extract(value, '$[2]'), 0
        FROM json_each(:outside) WHERE json_extract(value, '$[3]')
    UNION SELECT refs.to_key, refs.to_kind, refs.namespace,
            iif(refs.to_kind = 'ingests', 0, live.flat)
        FROM live CROSS JOIN refs ON refs.namespace = live.namespace
            AND refs.kind = live.kind AND refs.key = live.key
        WHERE refs.flat >= live.flat
    {also}
)
"""
_ALSO = """
    UNION SELECT also.to_key, also.to_kind, also.namespace, 0
        FROM live CROSS JOIN also ON also.namespace = live.namespace
            AND also.kind = live.kind AND also.key = live.key
        WHERE NOT live.flat OR also.kind = 'leases'
"""
_GARBAGE = """
SELECT id, 'leases', namespace FROM leases
UNION ALL SELECT name, 'images', namespace FROM images
UNION ALL SELECT ref, 'ingests', namespace FROM ingests
UNION ALL SELECT digest, 'content', namespace FROM blobs
UNION ALL SELECT key, 'snapshots/' || snapshotter, namespace FROM snapshots
UNION ALL SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
        json_extract(value, '$[2]')
    FROM json_each(:outside)
EXCEPT SELECT key, kind, namespace FROM live
"""
_PLAIN = _LIVE.format(met=conditions.MET, also="") + _GARBAGE
_WITH_MORE = _LIVE.format(met=conditions.MET, also=_ALSO) + _GARBAGE


_OF = "AS t ON t.namespace = f.value ->> 0 AND t.{key} = f.value ->> 2"
_UNROOTED = {
    "leases": f"leases {_OF.format(key='id')} WHERE t.expires_at < :now",
    "images": f"images {_OF.format(key='name')} WHERE t.expires_at < :now",
    "ingests": f"ingests {_OF.format(key='ref')} WHERE t.expires_at < :now",
    "content": f"blobs {_OF.format(key='digest')} WHERE NOT t.root",
    "snapshots": f"snapshots {_OF.format(key='key')} AND t.snapshotter = f.value ->> 3"
    " WHERE NOT t.root",
}
"""For each kind of garbage its table: the rows that are no roots."""
_EDGES_TO = """
SELECT namespace, kind, key FROM refs WHERE (to_key, to_kind, namespace) IN
    (SELECT value ->> 2, value ->> 1, value ->> 0 FROM json_each(?))
"""


class Found(NamedTuple):
    """A thing that nothing keeps."""

    namespace: str
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Outside:
    """What takes part in a collection without being rows, by kind."""

    resources: tuple[tuple[str, Collectible], ...] = ()
    open_ingests: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def edges(self) -> Iterable[tuple[str, references.Edge]]:
        """Namespaces, and what keeps what there."""
        for kind, resource in self.resources:
            node = Node(outside(kind), resource.key)
            if resource.lease:
                yield resource.namespace, references.Edge(Node(LEASES, resource.lease), node)
            for edge in references.label_edges(node, resource.labels):
                yield resource.namespace, edge

    def is_kept(self, found: Found) -> bool:
        """An ingest that has a writer stays, whatever its row says."""
        return found.kind == references.INGESTS and found[::2] in self.open_ingests


def garbage(connection: sqlite3.Connection, now: int, beside: Outside) -> list[Found]:
    """All that nothing keeps at ``now``, in nanoseconds."""
    edges = [(namespace, *e.source, *e.target) for namespace, e in beside.edges()]
    more = edges or connection.execute("SELECT 1 FROM conditions LIMIT 1").fetchone()
    listed = [
        (resource.key, outside(kind), resource.namespace, resource.active)
        for kind, resource in beside.resources
    ]
    rows = connection.execute(
        _WITH_MORE if more else _PLAIN,
        {"now": now, "edges": json.dumps(edges), "outside": json.dumps(listed)},
    ).fetchall()
    found = [Found(namespace, kind, key) for key, kind, namespace in rows]
    return [one for one in found if not beside.is_kept(one)]


def is_still(
    connection: sqlite3.Connection, found: Sequence[Found], now: int, beside: Outside
) -> bool:
    """Whether certainly all that was garbage once is so still, at the price of one look at each and
    at the edges: everything is there, nothing is a root, and no edge leads to it from anything
    else. Nothing may have changed ``beside``.

    False where it is not certain: with references that are no rows, or with an edge that a whole
    mark has to judge (it comes from what does not exist, or is not followed for a flat lease)."""
    if any(True for _ in beside.edges()) or any(map(beside.is_kept, found)):
        return False
    if connection.execute("SELECT 1 FROM conditions LIMIT 1").fetchone() is not None:
        return False
    by_kind: dict[str, list[Found]] = {}
    for one in found:
        kind = "snapshots" if is_snapshot(one.kind) else one.kind
        by_kind.setdefault("" if is_outside(kind) else kind, []).append(one)
    by_kind.pop("", None)
    for kind, ones in by_kind.items():
        query = f"SELECT count(*) FROM json_each(:found) AS f CROSS JOIN {_UNROOTED[kind]}"  # noqa: S608
        listed = json.dumps([[*one, one.kind.removeprefix("snapshots/")] for one in ones])
        if connection.execute(query, {"found": listed, "now": now}).fetchone() != (len(ones),):
            return False
    inside = set(found)
    edges = connection.execute(_EDGES_TO, (json.dumps(found),))
    return all(Found(*source) in inside for source in edges)


def in_pieces(connection: sqlite3.Connection, found: Sequence[Found]) -> list[list[Found]]:
    """Garbage in pieces of a bounded size, to be deleted in this order: what refers to something
    goes with it or before it, so that whatever survives (because somebody refers to it meanwhile)
    still has all that it refers to. Cycles are one piece."""
    if len(found) <= PIECE:
        return [list(found)] if found else []
    targets = {one: _targets(connection, one) for one in found}
    waiting = Counter(target for each in targets.values() for target in each if target in targets)
    ready = [one for one in found if not waiting[one]]
    for one in ready:  # it grows
        for target in targets[one]:
            waiting[target] -= 1
            if not waiting[target] and target in targets:
                ready.append(target)
    pieces = [ready[start : start + PIECE] for start in range(0, len(ready), PIECE)]
    cyclic = set(found).difference(ready)
    return [*pieces, list(cyclic)] if cyclic else pieces


def _targets(connection: sqlite3.Connection, one: Found) -> set[Found]:
    rows = connection.execute(
        "SELECT namespace, to_kind, to_key FROM refs WHERE namespace = ? AND kind = ? AND key = ?",
        one,
    )
    return {Found(*row) for row in rows} - {one}
