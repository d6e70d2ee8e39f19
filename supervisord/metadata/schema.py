"""The tables of the metadata database, as an ordered list of migrations. Append only.

Every row belongs to a namespace. ``labels`` are JSON objects without empty values. Times are
nanoseconds since the epoch. Beside the nouns there are four tables of our own:

* ``refs``: which resource keeps which alive, one row per edge, derived from the owner's fields
  and labels whenever the owner is written. Resources are named by the types that leases use
  (``content``, ``ingests``, ``images``, ``containers``, ``sandboxes``, ``leases``,
  ``snapshots/NAME``) and their key. A lease's resources are its edges. An edge with ``flat`` is
  followed for flat leases too.
* ``conditions``: edges that hold at some times only, see ``conditions``.
* ``removals``: what no row needs any more, written in the transaction that dropped the last row,
  and removed from the disk after it.
* ``sequences``: blocks of numbers for backend keys, reserved so that no number comes twice, not
  even after a crash.
"""

from __future__ import annotations

import contextlib
import sqlite3

from supervisord.contracts.errors import DataLoss
from supervisord.sqlite.migrations import Migration

from . import conditions
from .labels import unpack
from .nodes import Node

_V1 = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    labels BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE containers (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (namespace, id)
);

CREATE TABLE images (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations BLOB NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;

CREATE TABLE leases (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    flat INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE blobs (
    namespace TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    root INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;

CREATE INDEX blobs_by_digest ON blobs (digest);

CREATE TABLE ingests (
    namespace TEXT NOT NULL,
    ref TEXT NOT NULL,
    file INTEGER NOT NULL,
    total INTEGER NOT NULL,
    expected TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;

CREATE INDEX ingests_by_expected ON ingests (expected);

CREATE TABLE snapshots (
    namespace TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    key TEXT NOT NULL,
    backend TEXT NOT NULL,
    parent TEXT NOT NULL,
    labels BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    root INTEGER NOT NULL,
    PRIMARY KEY (namespace, snapshotter, key)
) WITHOUT ROWID;

CREATE INDEX snapshots_by_parent ON snapshots (namespace, snapshotter, parent);
CREATE INDEX snapshots_by_backend ON snapshots (snapshotter, backend);

CREATE TABLE refs (
    namespace TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    to_kind TEXT NOT NULL,
    to_key TEXT NOT NULL,
    owner_kind TEXT NOT NULL,
    owner_key TEXT NOT NULL,
    flat INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, key, to_kind, to_key, owner_kind, owner_key)
) WITHOUT ROWID;

CREATE INDEX refs_by_owner ON refs (namespace, owner_kind, owner_key);

CREATE TABLE removals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    key TEXT NOT NULL
);

CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
) WITHOUT ROWID
"""

_V2 = """
CREATE TABLE sandboxes (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (namespace, id)
)
"""

_CONDITIONS = """
CREATE TABLE conditions (
    namespace TEXT NOT NULL,
    owner_kind TEXT NOT NULL,
    owner_key TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    operator TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (namespace, owner_kind, owner_key, kind, key, operator, value)
) WITHOUT ROWID
"""


def _add_conditions(connection: sqlite3.Connection) -> None:
    """With what the labels of earlier rows say."""
    connection.execute(_CONDITIONS)
    for query in (
        "SELECT namespace, 'content', digest, labels FROM blobs",
        "SELECT namespace, 'images', name, labels FROM images",
        "SELECT namespace, 'snapshots/' || snapshotter, key, labels FROM snapshots",
    ):
        found = f"{query} WHERE instr(labels, CAST('containerd.io/gc.cond.' AS BLOB))"
        for namespace, kind, key, labels in connection.execute(found).fetchall():
            with contextlib.suppress(DataLoss):  # reported whenever the row is read
                conditions.insert(connection, namespace, Node(kind, key), unpack(labels))


MIGRATIONS: tuple[Migration, ...] = (_V1, _V2, _add_conditions)
