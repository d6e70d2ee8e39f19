"""What a collection would take, and what keeps a thing; implements contracts.garbage.Inspector.

Everything is read in threads, on read-only connections: nothing waits for it, and nothing changes.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice

from supervisord.content.blobs import BlobFiles
from supervisord.contracts.errors import Error, InvalidArgument, NotFound
from supervisord.contracts.garbage import Chain, Doomed, Explanation, Link
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import SnapshotService
from supervisord.sqlite.database import Database

from . import content_rows, nodes
from .garbage import Garbage
from .graph import TABLES, Graph
from .marking import Found, Outside
from .nodes import Node

_PART = 256
_MOST_CHAINS = 20
_BEGINNING = re.compile(r"(?:(?P<algorithm>sha[0-9]+):)?(?P<hex>[0-9a-f]{4,})\Z")


class Inspection:
    """``snapshots`` are the stores by the snapshotter's name."""

    def __init__(
        self,
        database: Database,
        garbage: Garbage,
        files: BlobFiles,
        snapshots: Mapping[str, SnapshotService],
    ) -> None:
        self._database = database
        self._garbage = garbage
        self._files = files
        self._snapshots = snapshots

    # What would go -----------------------------------------------------------------------------

    async def preview(self, namespace: str = "") -> AsyncIterator[Sequence[Doomed]]:
        """See the contract."""
        found = sorted(await asyncio.to_thread(self._garbage.marked, self._garbage.outside()))
        rows = Counter(one.key for one in found if one.kind == nodes.CONTENT)
        shown = [one for one in found if namespace in ("", one.namespace)]
        for start in range(0, len(shown), _PART):
            part = shown[start : start + _PART]
            sizes = await asyncio.to_thread(self._file_sizes, part, rows)
            for one in part:
                if nodes.is_snapshot(one.kind):
                    sizes[one] = await self._usage(one)
            yield [
                Doomed(one.namespace, nodes.word(one.kind), one.key, sizes.get(one, 0))
                for one in part
            ]

    def _file_sizes(self, part: Sequence[Found], rows: Counter[str]) -> dict[Found, int]:
        """Sizes of ingests, and of blobs that go from the disk too: those of which no row is
        left. Each counts once, for which its entry in ``rows`` is taken away."""
        return self._database.read(lambda c: dict(self._sized(c, part, rows)))

    def _sized(
        self, connection: sqlite3.Connection, part: Sequence[Found], rows: Counter[str]
    ) -> Iterator[tuple[Found, int]]:
        for one in part:
            if one.kind == nodes.INGESTS:
                row = content_rows.ingest(connection, one.namespace, one.key)
                if row is not None:
                    yield one, self._files.ingest_stat(row.file)[0]
            elif one.kind == nodes.CONTENT and one.key in rows:
                count, size = connection.execute(
                    "SELECT count(*), max(size) FROM blobs WHERE digest = ?", (one.key,)
                ).fetchone()
                if count == rows.pop(one.key):
                    yield one, size

    async def _usage(self, one: Found) -> int:
        store = self._snapshots.get(nodes.snapshotter(one.kind))
        if store is None:
            return 0
        try:
            return (await store.usage(Scope(one.namespace), one.key)).size
        except Error:  # gone meanwhile, or its backend does not know: no reason to list nothing
            return 0

    # What keeps it -----------------------------------------------------------------------------

    async def explain(self, namespace: str, id: str, type: str = "") -> Sequence[Explanation]:
        """See the contract."""
        beside = self._garbage.outside()
        return await asyncio.to_thread(
            self._database.read, lambda c: _explained(c, namespace, id, type, beside)
        )


def _explained(
    connection: sqlite3.Connection, namespace: str, id: str, type: str, beside: Outside
) -> list[Explanation]:
    # One moment for all that is read; the connection is this thread's own.
    connection.execute("BEGIN")
    try:
        called = _called(connection, namespace, id, type, beside)
        graph = Graph(connection, namespace, time.time_ns(), beside)
        return [_explanation(connection, graph, namespace, node) for node in called]
    finally:
        connection.execute("ROLLBACK")


def _explanation(
    connection: sqlite3.Connection, graph: Graph, namespace: str, node: Node
) -> Explanation:
    ways = graph.ways(node)
    chains: list[Chain] = []
    ends: list[int | None] = []
    for root, path in islice(ways, _MOST_CHAINS):
        links = [Link(nodes.word(kind), key, reason) for (kind, key), reason in path]
        chains.append(Chain(links, root.until))
        ends.append(root.until)
    more = [root.until for root, _ in ways]
    known = [end for end in (*ends, *more) if end is not None]
    return Explanation(
        nodes.word(node.kind),
        node.key,
        chains,
        len(more),
        max(known) if known and len(known) == len(ends) + len(more) else None,
        _sharers(connection, namespace, node),
    )


def _sharers(connection: sqlite3.Connection, namespace: str, node: Node) -> list[str]:
    """Other namespaces that have a blob."""
    if node.kind != nodes.CONTENT:
        return []
    rows = connection.execute(
        "SELECT namespace FROM blobs WHERE digest = ? AND namespace <> ? ORDER BY namespace",
        (node.key, namespace),
    )
    return [name for (name,) in rows]


def _called(
    connection: sqlite3.Connection, namespace: str, id: str, type: str, beside: Outside
) -> list[Node]:
    """The things of that name. Raises NotFound, InvalidArgument."""
    if not id:
        raise InvalidArgument("id: must not be empty")
    found = list(_exactly(connection, namespace, id, beside))
    wanted = [node for node in found if _is_of(node.kind, type)]
    if wanted:
        return wanted
    begun = [node for node in _begun(connection, namespace, id) if _is_of(node.kind, type)]
    if len({node.key for node in begun}) > 1:
        raise InvalidArgument(
            f"id: {id} is the beginning of {len(begun)} names, {begun[0].key} among them"
        )
    if not begun:
        what = f"{type} {id}" if type else id
        raise NotFound(f'nothing in namespace "{namespace}" is called {what}: not found')
    return begun


def _is_of(kind: str, type: str) -> bool:
    word = nodes.word(kind)
    return type in ("", word) or (nodes.is_snapshot(kind) and type == "snapshots")


def _exactly(
    connection: sqlite3.Connection, namespace: str, id: str, beside: Outside
) -> Iterator[Node]:
    for kind, (table, column) in TABLES.items():
        query = f"SELECT 1 FROM {table} WHERE namespace = ? AND {column} = ?"  # noqa: S608
        if connection.execute(query, (namespace, id)).fetchone():
            yield Node(kind, id)
    for (snapshotter,) in connection.execute(
        "SELECT snapshotter FROM snapshots WHERE namespace = ? AND key = ? ORDER BY snapshotter",
        (namespace, id),
    ):
        yield Node(nodes.snapshots(snapshotter), id)
    for kind, resource in beside.resources:
        if (resource.namespace, resource.key) == (namespace, id):
            yield Node(nodes.outside(kind), id)


def _begun(connection: sqlite3.Connection, namespace: str, id: str) -> Iterator[Node]:
    """Blobs, and snapshots that are called by digests, whose digest begins so."""
    match = _BEGINNING.match(id)
    if match is None:
        return
    start = f"{match['algorithm'] or 'sha256'}:{match['hex']}"
    between = (namespace, start, start + "g")
    for (digest,) in connection.execute(
        "SELECT digest FROM blobs WHERE namespace = ? AND digest BETWEEN ? AND ?", between
    ):
        yield Node(nodes.CONTENT, digest)
    for snapshotter, key in connection.execute(
        "SELECT snapshotter, key FROM snapshots WHERE namespace = ? AND key BETWEEN ? AND ?",
        between,
    ):
        yield Node(nodes.snapshots(snapshotter), key)
