"""Records that are kept as serialized protobufs, so that a list is a copy: containers, sandboxes.

One table for each noun, with the columns ``namespace``, ``id`` and ``record``. The stores say what
is allowed and what is published; this does the rest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from supervisord.contracts import filters as filter_language
from supervisord.contracts.containers import Container
from supervisord.contracts.errors import AlreadyExists, Internal, NotFound
from supervisord.contracts.sandboxes import Sandbox

from . import labels as label_rules
from . import references
from .commits import Commits, ensure_namespace
from .rows import fetched, readable

T = TypeVar("T", Container, Sandbox)

_EXTENSIONS = "extensions."


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What differs between nouns: the table (also the type of its nodes), the word in messages,
    the record's form, what a filter sees of a record, and what keeps what because of a thing.
    ``decode`` and ``fields`` raise ValueError for a damaged record; ``where`` follows an id that
    does not exist."""

    table: str
    word: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    fields: Callable[[bytes], filter_language.Adaptor]
    edges: Callable[[T], Sequence[references.Edge]]
    where: Callable[[str], str] = lambda namespace: ""


class RecordTable(Generic[T]):
    """All records of one noun."""

    def __init__(self, commits: Commits, kind: Kind[T]) -> None:
        self._commits = commits
        self._kind: Kind[T] = kind

    def get(self, namespace: str, id: str) -> T:
        """Raises NotFound, Internal for a damaged record."""
        return self._decoded(self.record(namespace, id), id)

    def record(self, namespace: str, id: str) -> bytes:
        """The serialized protobuf of one. Raises NotFound."""
        return self._commits.read(lambda connection: self._record(connection, namespace, id))

    def records(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[bytes]:
        """The serialized protobufs of all that match, in order of id; damaged ones, at which a
        client would stumble, are left out. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        query = f"SELECT record FROM {self._kind.table} WHERE namespace = ?"  # noqa: S608
        rows = self._commits.read(lambda c: fetched(c, query, (namespace,), "id"))
        seen = readable(rows, lambda row: (row[0], self._kind.fields(row[0])), self._kind.word)
        return [record for record, fields in seen if wanted.always or wanted.match(fields)]

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[T]:
        """All that match, in order of id; damaged ones are left out. Raises InvalidArgument."""
        records = self.records(namespace, filters)
        return list(readable(records, self._kind.decode, self._kind.word))

    async def insert(self, namespace: str, thing: T) -> bytes:
        """Answers the serialized protobuf. Raises AlreadyExists."""
        kind, record = self._kind, self._kind.encode(thing)
        query = f"INSERT OR IGNORE INTO {kind.table} VALUES (?, ?, ?)"  # noqa: S608
        node = references.Node(kind.table, thing.id)
        edges = kind.edges(thing)

        def insert(connection: sqlite3.Connection) -> None:
            if not connection.execute(query, (namespace, thing.id, record)).rowcount:
                raise AlreadyExists(f'{kind.word} "{thing.id}": already exists')
            ensure_namespace(connection, namespace)
            references.insert(connection, namespace, node, edges)

        await self._commits.write(insert)
        return record

    async def change(self, namespace: str, id: str, change: Callable[[T], T]) -> tuple[T, bytes]:
        """Answers also the serialized protobuf. Raises NotFound, and what ``change`` raises."""

        def update(connection: sqlite3.Connection) -> tuple[T, bytes]:
            changed = change(self._decoded(self._record(connection, namespace, id), id))
            record = self._kind.encode(changed)
            connection.execute(
                f"UPDATE {self._kind.table} SET record = ? WHERE namespace = ? AND id = ?",  # noqa: S608
                (record, namespace, id),
            )
            node = references.Node(self._kind.table, id)
            references.replace(connection, namespace, node, self._kind.edges(changed))
            return changed, record

        return await self._commits.write(update)

    async def remove(self, namespace: str, id: str) -> None:
        """Also a damaged record. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            query = f"DELETE FROM {self._kind.table} WHERE namespace = ? AND id = ?"  # noqa: S608
            if not connection.execute(query, (namespace, id)).rowcount:
                raise self._not_found(namespace, id)
            references.drop(connection, namespace, references.Node(self._kind.table, id))

        await self._commits.write(remove, deleted=True)

    def _record(self, connection: sqlite3.Connection, namespace: str, id: str) -> bytes:
        query = f"SELECT record FROM {self._kind.table} WHERE namespace = ? AND id = ?"  # noqa: S608
        row = connection.execute(query, (namespace, id)).fetchone()
        if row is None:
            raise self._not_found(namespace, id)
        record: bytes = row[0]
        return record

    def _not_found(self, namespace: str, id: str) -> NotFound:
        return NotFound(f'{self._kind.word} "{id}"{self._kind.where(namespace)}: not found')

    def _decoded(self, record: bytes, id: str) -> T:
        try:
            return self._kind.decode(record)
        except ValueError as error:
            raise Internal(f'{self._kind.word} "{id}": {error}') from error


def masked(
    current: T,
    wanted: T,
    fieldpaths: Sequence[str],
    fields: Mapping[str, str],
    refuse: Callable[[str], Exception],
) -> T:
    """``current`` with what the paths name taken from ``wanted``: ``labels`` and ``extensions``
    whole or by key, and ``fields``, an attribute for each path. ``refuse`` makes the error for
    another path."""
    labels, extensions = dict(current.labels), dict(current.extensions)
    others: dict[str, Any] = {}
    for path in fieldpaths:
        if path.startswith(label_rules.LABELS):
            key = path.removeprefix(label_rules.LABELS)
            labels[key] = wanted.labels.get(key, "")
        elif path.startswith(_EXTENSIONS):
            key = path.removeprefix(_EXTENSIONS)
            if key in wanted.extensions:
                extensions[key] = wanted.extensions[key]
            else:
                extensions.pop(key, None)
        elif path == "labels":
            labels = dict(wanted.labels)
        elif path == "extensions":
            extensions = dict(wanted.extensions)
        elif path in fields:
            others[fields[path]] = getattr(wanted, fields[path])
        else:
            raise refuse(path)
    return replace(current, labels=labels, extensions=extensions, **others)
