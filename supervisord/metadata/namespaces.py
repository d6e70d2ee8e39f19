"""Namespaces in the metadata database; implements contracts.namespaces.NamespaceStore."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from protos.containerd.events import events_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.identifiers import check_identifier, check_labels
from supervisord.contracts.namespaces import Namespace

from . import labels as label_rules
from .commits import Commits, ensure_namespace
from .removals import note_blob
from .rows import fetched, readable

_FIELD = "namespace.labels"


def _namespace(row: tuple[str, bytes]) -> Namespace:
    return Namespace(row[0], label_rules.unpack(row[1]))


class Namespaces:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def get(self, name: str) -> Namespace:
        """A namespace that does not exist has no labels."""
        return self._commits.read(lambda c: _find(c, name)) or Namespace(name)

    def list(self) -> Sequence[Namespace]:
        """All namespaces in order of name."""
        rows = self._commits.read(
            lambda c: fetched(c, "SELECT name, labels FROM namespaces", (), "name")
        )
        return list(readable(rows, _namespace, "namespace"))

    async def create(self, namespace: Namespace) -> Namespace:
        """Raises InvalidArgument, AlreadyExists."""
        check_identifier(namespace.name, "namespace.name")
        made = Namespace(namespace.name, label_rules.checked(namespace.labels, _FIELD))

        def insert(connection: sqlite3.Connection) -> None:
            done = connection.execute(
                "INSERT OR IGNORE INTO namespaces VALUES (?, ?)",
                (made.name, label_rules.pack(made.labels)),
            )
            if not done.rowcount:
                raise AlreadyExists(f'namespace "{made.name}": already exists')

        await self._commits.write(insert)
        event = events_pb2.NamespaceCreate(name=made.name, labels=made.labels)
        self._commits.publish(made.name, "/namespaces/create", event)
        return made

    async def update(self, namespace: Namespace, fieldpaths: Sequence[str]) -> Namespace:
        """Replaces all labels, or with ``labels.KEY`` paths only those; an empty value removes.
        Creates what does not exist. Raises InvalidArgument."""
        check_identifier(namespace.name, "namespace.name")
        for path in fieldpaths:
            if not path.startswith(label_rules.LABELS):
                raise InvalidArgument(f'cannot update "{path}" field: invalid argument')
        check_labels(namespace.labels, _FIELD)

        def change(connection: sqlite3.Connection) -> Namespace:
            ensure_namespace(connection, namespace.name)
            current = _find(connection, namespace.name) or Namespace(namespace.name)
            labels = label_rules.updated(
                current.labels, namespace.labels, fieldpaths, f'namespace "{namespace.name}"'
            )
            changed = Namespace(namespace.name, label_rules.checked(labels, _FIELD))
            connection.execute(
                "UPDATE namespaces SET labels = ? WHERE name = ?",
                (label_rules.pack(changed.labels), changed.name),
            )
            return changed

        changed = await self._commits.write(change)
        event = events_pb2.NamespaceUpdate(name=changed.name, labels=changed.labels)
        self._commits.publish(changed.name, "/namespaces/update", event)
        return changed

    async def delete(self, name: str) -> None:
        """Leases and ingests go with it. Raises NotFound, FailedPrecondition."""

        def remove(connection: sqlite3.Connection) -> None:
            if _find(connection, name) is None:
                raise NotFound(f'namespace "{name}": not found')
            left = _left_in(connection, name)
            if left:
                raise FailedPrecondition(
                    f'namespace "{name}" must be empty, but it still has {", ".join(left)}: '
                    "failed precondition"
                )
            connection.execute(
                "INSERT INTO removals (kind, key) SELECT 'ingests', file FROM ingests"
                " WHERE namespace = ?",
                (name,),
            )
            standing = connection.execute(
                "SELECT DISTINCT expected FROM ingests WHERE namespace = ? AND expected != ''",
                (name,),
            ).fetchall()
            for table in ("leases", "ingests", "refs", "conditions"):
                connection.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))  # noqa: S608
            for (digest,) in standing:
                note_blob(connection, digest)
            connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))

        await self._commits.write(remove, deleted=True)
        self._commits.publish(name, "/namespaces/delete", events_pb2.NamespaceDelete(name=name))


def _find(connection: sqlite3.Connection, name: str) -> Namespace | None:
    row = connection.execute(
        "SELECT name, labels FROM namespaces WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else _namespace(row)


def _left_in(connection: sqlite3.Connection, name: str) -> list[str]:
    """The kinds of records in a namespace, in containerd's words and order. Sandboxes are ours:
    there they go with the namespace, and their shims are left to nobody."""
    left = [
        noun
        for noun in ("images", "blobs", "containers", "sandboxes")
        if connection.execute(
            f"SELECT 1 FROM {noun} WHERE namespace = ? LIMIT 1",  # noqa: S608
            (name,),
        ).fetchone()
    ]
    snapshotters = connection.execute(
        "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY snapshotter",
        (name,),
    )
    return left + [f'snapshots on "{snapshotter}" snapshotter' for (snapshotter,) in snapshotters]
