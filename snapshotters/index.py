"""The index of one snapshotter: names, kinds, parents, labels, times and usage, in SQLite.

Each snapshotter has an index of its own, so that it can serve any daemon. The functions that
take a connection run inside ``Database.write`` (one transaction each) or ``Database.read``; they
hold the rules of the noun and touch no disk. Directories are named by the numeric id, which a
snapshot keeps from prepare through commit; names may be freed and taken again, ids never.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from supervisord.contracts.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.snapshots import Info, Kind, Usage

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        parent INTEGER REFERENCES snapshots (id),
        kind INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        labels TEXT NOT NULL,
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX snapshots_by_parent ON snapshots (parent) WHERE parent IS NOT NULL
    """,
)

_COLUMNS = (
    "s.id, s.name, s.kind, s.created_at, s.updated_at, s.labels, s.size, s.inodes, "
    "s.parent, coalesce(p.name, '')"
)
_FROM = "FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"
_CHAIN = """
    WITH RECURSIVE chain (id, parent, depth) AS (
        SELECT id, parent, 0 FROM snapshots WHERE id = ?
        UNION ALL
        SELECT s.id, s.parent, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent
    )
    SELECT id FROM chain ORDER BY depth
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One snapshot: what clients see of it, its id, its parent's id (0 for none), its usage."""

    id: int
    info: Info
    parent_id: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Chain:
    """What mounts are made of: the snapshot, and the ids of its parents, nearest first."""

    id: int
    kind: Kind
    parents: Sequence[int]
    labels: Mapping[str, str]


def get(connection: sqlite3.Connection, name: str) -> Row:
    """Raises NotFound."""
    found = connection.execute(f"SELECT {_COLUMNS} {_FROM} WHERE s.name = ?", (name,)).fetchone()
    if found is None:
        raise NotFound(f"snapshot {name!r}: not found")
    return _row(found)


def page(connection: sqlite3.Connection, after: str, limit: int = 256) -> list[Row]:
    """The next snapshots in order of name, from the one behind ``after`` on."""
    found = connection.execute(
        f"SELECT {_COLUMNS} {_FROM} WHERE s.name > ? ORDER BY s.name LIMIT ?", (after, limit)
    )
    return [_row(each) for each in found]


def ids(connection: sqlite3.Connection) -> set[int]:
    """The ids of all snapshots."""
    return {id for (id,) in connection.execute("SELECT id FROM snapshots")}


def last_id(connection: sqlite3.Connection) -> int:
    """The highest id that was ever committed to the index."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'")
    (last,) = found.fetchone() or (0,)
    return int(last)


def chain(connection: sqlite3.Connection, name: str) -> Chain:
    """Raises NotFound, FailedPrecondition unless the snapshot is active or a view."""
    row = get(connection, name)
    if row.info.kind not in (Kind.ACTIVE, Kind.VIEW):
        raise FailedPrecondition(f"snapshot {name!r}: not active or view, so it has no mounts")
    return Chain(row.id, row.info.kind, _parents(connection, row.parent_id), row.info.labels)


def parent_of_new(connection: sqlite3.Connection, key: str, parent: str) -> Sequence[int]:
    """Checks that ``key`` can be made on ``parent``; answers the chain of parent ids.

    Raises InvalidArgument (empty key, parent not committed), NotFound (parent), AlreadyExists."""
    if not key:
        raise InvalidArgument("key: must not be empty")
    parents: Sequence[int] = ()
    if parent:
        found = connection.execute(
            "SELECT id, kind FROM snapshots WHERE name = ?", (parent,)
        ).fetchone()
        if found is None:
            raise NotFound(f"parent snapshot {parent!r}: not found")
        if found[1] != Kind.COMMITTED:
            raise InvalidArgument(f"parent {parent!r} is not a committed snapshot")
        parents = _parents(connection, found[0])
    if connection.execute("SELECT 1 FROM snapshots WHERE name = ?", (key,)).fetchone():
        raise AlreadyExists(f"snapshot {key!r}: already exists")
    return parents


def chain_of_parent(connection: sqlite3.Connection, parent: str) -> Sequence[int]:
    """The ids of a would-be parent and all of its own, nearest first.

    Raises NotFound, FailedPrecondition (not committed)."""
    row = get(connection, parent)
    if row.info.kind != Kind.COMMITTED:
        raise FailedPrecondition(f"parent {parent!r} is not committed")
    return _parents(connection, row.id)


def insert(
    connection: sqlite3.Connection,
    id: int,
    kind: Kind,
    key: str,
    parents: Sequence[int],
    labels: Mapping[str, str],
) -> Chain:
    """Adds an active or view snapshot whose parents ``parent_of_new`` gave in this
    transaction."""
    now = time.time_ns()
    connection.execute(
        "INSERT INTO snapshots (id, name, parent, kind, created_at, updated_at, labels) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, key, parents[0] if parents else None, int(kind), now, now, _encode(labels)),
    )
    return Chain(id, kind, parents, labels)


def commit(
    connection: sqlite3.Connection,
    name: str,
    key: str,
    parent: str,
    labels: Mapping[str, str],
    usage: Usage,
) -> None:
    """Turns the active ``key`` into the committed ``name``, with a parent if it had none.

    Raises InvalidArgument, AlreadyExists, NotFound, FailedPrecondition."""
    if not name:
        raise InvalidArgument("name: must not be empty")
    if connection.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
        raise AlreadyExists(f"committed snapshot {name!r}: already exists")
    row = get(connection, key)
    if row.info.kind != Kind.ACTIVE:
        raise FailedPrecondition(f"snapshot {key!r} is not active")
    now = time.time_ns()
    connection.execute(
        "UPDATE snapshots SET name = ?, kind = ?, parent = ?, created_at = ?, updated_at = ?, "
        "labels = ?, size = ?, inodes = ? WHERE id = ?",
        (
            name,
            int(Kind.COMMITTED),
            _rebased(connection, row, parent) or None,
            now,
            now,
            _encode(labels),
            usage.size,
            usage.inodes,
            row.id,
        ),
    )


def update(connection: sqlite3.Connection, info: Info, fieldpaths: Sequence[str]) -> Row:
    """Changes labels by path, or all of them without one. A label set to "" is removed.

    Raises NotFound, InvalidArgument for an immutable field."""
    row = get(connection, info.name)
    labels = dict(row.info.labels)
    for path in fieldpaths or ("labels",):
        if path == "labels":
            labels = dict(info.labels)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            labels[key] = info.labels.get(key, "")
        else:
            raise InvalidArgument(f"cannot update field {path!r} on snapshot {info.name!r}")
    labels = {key: value for key, value in labels.items() if value}
    now = time.time_ns()
    connection.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?",
        (_encode(labels), now, row.id),
    )
    return replace(row, info=replace(row.info, labels=labels, updated_at=now))


def remove(connection: sqlite3.Connection, key: str) -> Row:
    """Takes the snapshot out of the index, and answers what it was.

    Raises NotFound, FailedPrecondition while it has children."""
    row = get(connection, key)
    if connection.execute("SELECT 1 FROM snapshots WHERE parent = ?", (row.id,)).fetchone():
        raise FailedPrecondition(f"snapshot {key!r}: cannot remove snapshot with child")
    connection.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))
    return row


def _rebased(connection: sqlite3.Connection, row: Row, parent: str) -> int:
    if not parent or parent == row.info.parent:
        return row.parent_id
    if row.info.parent:
        raise InvalidArgument(
            f"parent: cannot change the parent of snapshot {row.info.name!r} on commit"
        )
    return chain_of_parent(connection, parent)[0]


def _parents(connection: sqlite3.Connection, id: int) -> Sequence[int]:
    return tuple(each for (each,) in connection.execute(_CHAIN, (id,))) if id else ()


def _encode(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), separators=(",", ":"), ensure_ascii=False)


def _row(columns: Sequence[object]) -> Row:
    id, name, kind, created_at, updated_at, labels, size, inodes, parent_id, parent = columns
    info = Info(
        name=str(name),
        parent=str(parent),
        kind=Kind(_int(kind)),
        created_at=_int(created_at),
        updated_at=_int(updated_at),
        labels=json.loads(str(labels)),
    )
    return Row(_int(id), info, _int(parent_id or 0), Usage(_int(size), _int(inodes)))


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
