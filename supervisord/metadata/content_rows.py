"""The rows of blobs and ingests: statements for the content store, its writers and the sweep."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supervisord.contracts import filters as filter_language
from supervisord.contracts.content import Info, Status
from supervisord.contracts.errors import NotFound
from supervisord.contracts.scope import Scope

from . import labels as label_rules
from . import references
from .commits import ensure_namespace
from .removals import note_blob

_SHAREABLE = "containerd.io/namespace.shareable"
_COLUMNS = "digest, size, labels, created_at, updated_at"
_INGEST = "ref, file, total, expected, started_at"


@dataclass(frozen=True, slots=True)
class IngestRow:
    """An ingest: ``file`` numbers its file; ``expected`` is a blob of another namespace that
    stands for its bytes, or ""."""

    ref: str
    file: int
    total: int
    expected: str
    started_at: int

    def status(self, offset: int, updated_at: int) -> Status:
        """With what the file tells."""
        return Status(
            ref=self.ref,
            offset=offset,
            total=self.total,
            expected=self.expected,
            started_at=self.started_at,
            updated_at=updated_at or self.started_at,
        )


# Blobs ---------------------------------------------------------------------------------------


def info(connection: sqlite3.Connection, namespace: str, digest: str) -> Info:
    """Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? AND digest = ?",  # noqa: S608
        (namespace, digest),
    ).fetchone()
    if row is None:
        raise _not_found(digest)
    return from_row(row)


def size(connection: sqlite3.Connection, namespace: str, digest: str) -> int:
    """Of one blob. Raises NotFound; a damaged record will do."""
    found = connection.execute(
        "SELECT size FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    if found is None:
        raise _not_found(digest)
    return int(found[0])


def require(connection: sqlite3.Connection, namespace: str, digest: str) -> None:
    """Raises NotFound; a damaged record will do."""
    found = connection.execute(
        "SELECT 1 FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    if found is None:
        raise _not_found(digest)


def _not_found(digest: str) -> NotFound:
    return NotFound(f"content digest {digest}: not found")


def from_row(row: tuple[Any, ...]) -> Info:
    """The row of ``info`` or ``page``."""
    digest, size, labels, created_at, updated_at = row
    return Info(digest, size, created_at, updated_at, label_rules.unpack(labels))


def page(
    connection: sqlite3.Connection, namespace: str, after: str, limit: int
) -> Sequence[tuple[Any, ...]]:
    """The next rows in order of digest."""
    return connection.execute(
        f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? AND digest > ?"  # noqa: S608
        " ORDER BY digest LIMIT ?",
        (namespace, after, limit),
    ).fetchall()


def insert(
    connection: sqlite3.Connection,
    namespace: str,
    digest: str,
    size: int,
    labels: Mapping[str, str],
) -> Info | None:
    """The new blob; None if the namespace has it already."""
    now = time.time_ns()
    made = Info(digest, size, now, now, labels)
    ensure_namespace(connection, namespace)
    done = connection.execute(
        "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            digest,
            size,
            label_rules.pack(labels),
            now,
            now,
            references.is_root(labels),
        ),
    )
    if not done.rowcount:
        return None
    _refer(connection, namespace, made)
    return made


def relabel(
    connection: sqlite3.Connection, namespace: str, current: Info, labels: Mapping[str, str]
) -> Info:
    """Gives a blob other labels."""
    changed = replace(current, labels=labels, updated_at=time.time_ns())
    connection.execute(
        "UPDATE blobs SET labels = ?, updated_at = ?, root = ? WHERE namespace = ? AND digest = ?",
        (
            label_rules.pack(labels),
            changed.updated_at,
            references.is_root(labels),
            namespace,
            changed.digest,
        ),
    )
    _refer(connection, namespace, changed)
    return changed


def delete(connection: sqlite3.Connection, namespace: str, digest: str) -> None:
    """Deletes a row with its edges; the caller notes the removal of the file."""
    connection.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest))
    references.drop(connection, namespace, references.Node(references.CONTENT, digest))


def shareable(connection: sqlite3.Connection, digest: str, *, isolated: bool) -> bool:
    """Whether some namespace has the blob and lets the others have it."""
    owners = connection.execute(
        "SELECT n.labels FROM blobs b JOIN namespaces n ON n.name = b.namespace WHERE b.digest = ?",
        (digest,),
    )
    return any(
        not isolated or label_rules.unpack(labels).get(_SHAREABLE) == "true" for (labels,) in owners
    )


def adaptor(blob: Info) -> filter_language.Adaptor:
    """The fields that a content filter may name."""

    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "digest":
            return blob.digest, True
        if path[0] == "labels":
            return filter_language.lookup(path[1:], blob.labels)
        return "", False

    return field


def _refer(connection: sqlite3.Connection, namespace: str, blob: Info) -> None:
    node = references.Node(references.CONTENT, blob.digest)
    edges = references.label_edges(node, blob.labels)
    references.replace(connection, namespace, node, edges, blob.labels)


# Ingests -------------------------------------------------------------------------------------


def ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> IngestRow | None:
    """The row of one ingest."""
    row = connection.execute(
        f"SELECT {_INGEST} FROM ingests WHERE namespace = ? AND ref = ?",  # noqa: S608
        (namespace, ref),
    ).fetchone()
    return None if row is None else IngestRow(*row)


def ingests(connection: sqlite3.Connection, namespace: str) -> list[IngestRow]:
    """All ingests of a namespace in order of ref."""
    rows = connection.execute(
        f"SELECT {_INGEST} FROM ingests WHERE namespace = ? ORDER BY ref",  # noqa: S608
        (namespace,),
    )
    return [IngestRow(*row) for row in rows]


def begin(
    connection: sqlite3.Connection, scope: Scope, fresh: IngestRow, expires: int
) -> IngestRow:
    """Adds an ingest, or takes up the one of that ref; held by the scope's lease, and without
    one only until it expires. Its own bytes have no use if the total is another one or a blob
    stands for them: it gets the fresh file then, and the caller sees to the old one. Raises
    NotFound (lease)."""
    ensure_namespace(connection, scope.namespace)
    node = references.Node(references.INGESTS, fresh.ref)
    leased = references.hold(connection, scope, node)
    before = row = ingest(connection, scope.namespace, fresh.ref)
    if row is None:
        row = fresh
        expires_at = None if leased else expires
    else:
        row = _taken_up(row, fresh)
        (expires_at,) = connection.execute(
            "SELECT expires_at FROM ingests WHERE namespace = ? AND ref = ?",
            (scope.namespace, fresh.ref),
        ).fetchone()
        expires_at = expires_at if leased else expires
    connection.execute(
        "INSERT OR REPLACE INTO ingests VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            scope.namespace,
            row.ref,
            row.file,
            row.total,
            row.expected,
            row.started_at,
            expires_at,
        ),
    )
    target = references.Node(references.CONTENT, row.expected)
    edges = [references.Edge(node, target)] if row.expected else []
    references.replace(connection, scope.namespace, node, edges)
    _let_go(connection, before)
    return row


def _taken_up(row: IngestRow, fresh: IngestRow) -> IngestRow:
    if fresh.total and row.total and fresh.total != row.total:
        return fresh
    if fresh.expected:
        return replace(fresh, started_at=row.started_at)
    return replace(row, total=row.total or fresh.total, expected="")


def delete_ingest(connection: sqlite3.Connection, namespace: str, ref: str) -> None:
    """Deletes a row with its edges; the caller sees to the file. A blob that only stood for the
    ingest any more goes too."""
    before = ingest(connection, namespace, ref)
    connection.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref))
    references.drop(connection, namespace, references.Node(references.INGESTS, ref))
    _let_go(connection, before)


def forget_expected(connection: sqlite3.Connection, namespace: str, ref: str) -> None:
    """The ingest has bytes of its own now."""
    before = ingest(connection, namespace, ref)
    connection.execute(
        "UPDATE ingests SET expected = '' WHERE namespace = ? AND ref = ?", (namespace, ref)
    )
    references.drop(connection, namespace, references.Node(references.INGESTS, ref))
    _let_go(connection, before)


def _let_go(connection: sqlite3.Connection, before: IngestRow | None) -> None:
    """Of the blob that stood for an ingest: its own namespace may have deleted it meanwhile."""
    if before is not None and before.expected:
        note_blob(connection, before.expected)
