"""Checks the edges of garbage collection: does everything keep what its fields and labels say?

A lost edge would have something in use collected; it is derived anew. Edges of leases are their
own, and are not checked here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from supervisord.contracts.checks import Finding, Options, Progress, Report
from supervisord.contracts.errors import DataLoss

from . import (
    container_records,
    containers,
    content_rows,
    images,
    references,
    sandbox_records,
    sandboxes,
    snapshot_rows,
)
from .commits import Commits

_PAGE = 200

_Derived = tuple[str, references.Node, list[references.Edge], Mapping[str, str]]
_Keys = tuple[Any, ...]


def _of_blob(row: _Keys) -> _Derived:
    namespace, _, *columns = row
    blob = content_rows.from_row(tuple(columns))
    node = references.Node(references.CONTENT, blob.digest)
    return namespace, node, list(references.label_edges(node, blob.labels)), blob.labels


def _of_image(row: _Keys) -> _Derived:
    namespace, _, *columns = row
    image = images.from_row(tuple(columns))
    node = references.Node(references.IMAGES, image.name)
    return namespace, node, images.edges(image), image.labels


def _of_snapshot(row: _Keys) -> _Derived:
    namespace, snapshotter, *columns = row
    snapshot = snapshot_rows.from_raw(tuple(columns))
    node = references.Node(references.snapshots(snapshotter), snapshot.key)
    return namespace, node, snapshot_rows.edges(node, snapshot), snapshot.labels


def _of_container(row: _Keys) -> _Derived:
    namespace, _, record = row
    container = container_records.decode(record)
    node = references.Node(references.CONTAINERS, container.id)
    return namespace, node, containers.edges(container), {}


def _of_sandbox(row: _Keys) -> _Derived:
    namespace, _, record = row
    sandbox = sandbox_records.decode(record)
    node = references.Node(references.SANDBOXES, sandbox.id)
    return namespace, node, sandboxes.edges(sandbox), {}


_BLOB = "digest, size, labels, created_at, updated_at"
_IMAGE = "name, media_type, digest, size, annotations, labels, created_at, updated_at"
_SNAPSHOT = "key, backend, parent, labels, created_at, updated_at"
_TABLES: Sequence[tuple[str, str, str, Callable[[_Keys], _Derived]]] = (
    ("blobs", "namespace, digest", f"namespace, digest, {_BLOB}", _of_blob),
    ("images", "namespace, name", f"namespace, name, {_IMAGE}", _of_image),
    ("snapshots", "namespace, snapshotter, key", f"namespace, snapshotter, {_SNAPSHOT}",
     _of_snapshot),
    ("containers", "namespace, id", "namespace, id, record", _of_container),
    ("sandboxes", "namespace, id", "namespace, id, record", _of_sandbox),
)  # fmt: skip


async def check_edges(commits: Commits, options: Options) -> AsyncGenerator[Report, None]:
    """All owners of edges but leases."""
    for done, (name, keys, columns, derive) in enumerate(_TABLES):
        last: _Keys | None = None
        width = keys.count(",") + 1
        while page := commits.read(
            partial(_page, name=name, keys=keys, columns=columns, after=last)
        ):
            last = page[-1][:width]
            for row in page:
                # A record that does not parse is check_records' finding.
                try:
                    derived = derive(row[width:])
                except (ValueError, TypeError, DataLoss):
                    continue
                if not commits.read(partial(_missing, derived=derived)):
                    continue
                change = partial(_derive_anew, name=name, row=row, columns=columns, keys=keys,
                                 derive=derive, repair=options.repair)  # fmt: skip
                for finding in await commits.write(change):
                    yield finding
        yield Progress("edges", done + 1, len(_TABLES))


def _page(
    connection: sqlite3.Connection, name: str, keys: str, columns: str, after: _Keys | None
) -> list[_Keys]:
    where = f" WHERE ({keys}) > ({', '.join('?' * len(after))})" if after else ""
    query = f"SELECT {keys}, {columns} FROM {name}{where} ORDER BY {keys} LIMIT {_PAGE}"  # noqa: S608
    return connection.execute(query, after or ()).fetchall()


def _missing(connection: sqlite3.Connection, derived: _Derived) -> list[references.Edge]:
    namespace, owner, wanted, _ = derived
    present = {
        (references.Node(*row[:2]), references.Node(*row[2:]))
        for row in connection.execute(
            "SELECT kind, key, to_kind, to_key FROM refs"
            " WHERE namespace = ? AND owner_kind = ? AND owner_key = ?",
            (namespace, *owner),
        )
    }
    return [edge for edge in wanted if (edge.source, edge.target) not in present]


def _derive_anew(
    connection: sqlite3.Connection,
    name: str,
    row: _Keys,
    columns: str,
    keys: str,
    derive: Callable[[_Keys], _Derived],
    repair: bool,
) -> list[Finding]:
    """Again, in the writer: the record may have changed meanwhile."""
    width = keys.count(",") + 1
    where = f"({keys}) = ({', '.join('?' * width)})"
    query = f"SELECT {columns} FROM {name} WHERE {where}"  # noqa: S608
    found = connection.execute(query, row[:width]).fetchone()
    if found is None:
        return []
    namespace, owner, wanted, labels = derived = derive(found)
    missing = _missing(connection, derived)
    if missing and repair:
        references.replace(connection, namespace, owner, wanted, labels)
    return [
        Finding(
            "edge", owner.key, "missing", f"does not keep {edge.target.kind} {edge.target.key}"
            if edge.source == owner else f"is not kept by {edge.source.kind} {edge.source.key}",
            namespace, "it is derived again from the record", repair,
        )
        for edge in missing
    ]  # fmt: skip
