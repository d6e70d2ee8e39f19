"""Sandboxes in the metadata database; implements contracts.sandboxes.SandboxStore.

Records only: instances are the controllers' business. A record is a root of garbage collection,
which keeps what its labels refer to, as a container's is.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

from supervisord.contracts import filters as filter_language
from supervisord.contracts.errors import AlreadyExists, Internal, InvalidArgument, NotFound
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.sandboxes import Sandbox

from . import labels as label_rules
from . import references
from . import sandbox_records as records
from .commits import Commits, ensure_namespace
from .rows import readable

_EXTENSIONS = "extensions."
_MUTABLE = ("labels", "extensions", "spec", "runtime")


class Sandboxes:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def get(self, namespace: str, id: str) -> Sandbox:
        """Raises NotFound."""
        return _decoded(self.record(namespace, id), id)

    def record(self, namespace: str, id: str) -> bytes:
        """The serialized protobuf of one. Raises NotFound."""
        return self._commits.read(lambda connection: _record(connection, namespace, id))

    def records(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[bytes]:
        """The serialized protobufs of all that match, in order of id. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        rows = self._commits.read(
            lambda c: c.execute(
                "SELECT record FROM sandboxes WHERE namespace = ? ORDER BY id", (namespace,)
            ).fetchall()
        )
        if wanted.always:
            return [record for (record,) in rows]
        messages = readable(rows, lambda row: (row[0], records.parse(row[0])), "sandbox")
        return [record for record, message in messages if wanted.match(records.adaptor(message))]

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Raises InvalidArgument, AlreadyExists."""
        now = time.time_ns()
        made = _checked(replace(sandbox, created_at=now, updated_at=now))
        record = records.encode(made)

        def insert(connection: sqlite3.Connection) -> None:
            ensure_namespace(connection, namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO sandboxes VALUES (?, ?, ?)", (namespace, made.id, record)
            )
            if not done.rowcount:
                raise AlreadyExists(f'sandbox "{made.id}": already exists')
            _refer(connection, namespace, made)

        await self._commits.write(insert)
        return made

    async def update(self, namespace: str, sandbox: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
        """Changes the mutable fields. Raises NotFound, InvalidArgument."""

        def change(connection: sqlite3.Connection) -> Sandbox:
            current = _decoded(_record(connection, namespace, sandbox.id), sandbox.id)
            changed = _checked(
                replace(_changed(current, sandbox, fieldpaths), updated_at=time.time_ns())
            )
            connection.execute(
                "UPDATE sandboxes SET record = ? WHERE namespace = ? AND id = ?",
                (records.encode(changed), namespace, changed.id),
            )
            _refer(connection, namespace, changed)
            return changed

        return await self._commits.write(change)

    async def delete(self, namespace: str, id: str) -> None:
        """Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            done = connection.execute(
                "DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id)
            )
            if not done.rowcount:
                raise _not_found(id)
            references.drop(connection, namespace, references.Node(references.SANDBOXES, id))

        await self._commits.write(remove, deleted=True)


def _not_found(id: str) -> NotFound:
    return NotFound(f'sandbox "{id}": not found')


def _record(connection: sqlite3.Connection, namespace: str, id: str) -> bytes:
    row = connection.execute(
        "SELECT record FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, id)
    ).fetchone()
    if row is None:
        raise _not_found(id)
    record: bytes = row[0]
    return record


def _decoded(record: bytes, id: str) -> Sandbox:
    try:
        return records.decode(record)
    except ValueError as error:
        raise Internal(f'sandbox "{id}": {error}') from error


def edges(sandbox: Sandbox) -> list[references.Edge]:
    """What keeps what because of the sandbox. Back references count for nothing, as in containerd:
    it is always live."""
    node = references.Node(references.SANDBOXES, sandbox.id)
    return [edge for edge in references.label_edges(node, sandbox.labels) if edge.source == node]


def _refer(connection: sqlite3.Connection, namespace: str, sandbox: Sandbox) -> None:
    node = references.Node(references.SANDBOXES, sandbox.id)
    references.replace(connection, namespace, node, edges(sandbox))


def _checked(sandbox: Sandbox) -> Sandbox:
    """The sandbox as it is kept. Raises InvalidArgument."""
    check_identifier(sandbox.id, "sandbox.sandbox_id")
    if "" in sandbox.extensions:
        raise InvalidArgument("sandbox.extensions: keys must not be zero-length")
    return replace(sandbox, labels=label_rules.checked(sandbox.labels, "sandbox.labels"))


def _changed(current: Sandbox, wanted: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
    """``current`` with the fields of ``wanted`` that the paths name. Raises InvalidArgument."""
    if not fieldpaths:
        fieldpaths = _MUTABLE
        if current.runtime.name != wanted.runtime.name:
            raise InvalidArgument("sandbox.Runtime.Name field is immutable: invalid argument")
    labels = dict(current.labels)
    extensions = dict(current.extensions)
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
        elif path == "runtime":
            current = replace(current, runtime=wanted.runtime)
        elif path == "spec":
            current = replace(current, spec=wanted.spec)
        else:
            raise InvalidArgument(
                f'cannot update "{path}" field on sandbox "{current.id}": invalid argument'
            )
    return replace(current, labels=labels, extensions=extensions)
