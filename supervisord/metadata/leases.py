"""Leases in the metadata database; implements contracts.leases.LeaseStore."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisord.contracts import filters as filter_language
from supervisord.contracts.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.contracts.identifiers import check_digest
from supervisord.contracts.leases import Lease, Resource

from . import labels as label_rules
from . import references
from .commits import Commits, ensure_namespace
from .rows import fetched, readable

MAX_ID = 1024
"""Bytes; containerd sets no limit, ours keeps a row small."""


class Leases:
    """The store; see the contract for what each method promises."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def get(self, namespace: str, id: str) -> Lease:
        """Raises NotFound."""
        return self._commits.read(lambda connection: _get(connection, namespace, id))

    async def create(self, namespace: str, lease: Lease) -> Lease:
        """Raises InvalidArgument, AlreadyExists. An id of "" gets a random one."""
        made = replace(
            lease,
            id=_checked_id(lease.id or _random_id()),
            created_at=time.time_ns(),
            labels=label_rules.checked(lease.labels, "lease.labels"),
        )

        def insert(connection: sqlite3.Connection) -> None:
            ensure_namespace(connection, namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    made.id,
                    label_rules.pack(made.labels),
                    made.created_at,
                    references.expiry(made.labels, f'lease "{made.id}"'),
                    references.is_flat(made.labels),
                ),
            )
            if not done.rowcount:
                raise AlreadyExists(f'lease "{made.id}": already exists')

        await self._commits.write(insert)
        return made

    async def expire(self, namespace: str, id: str, seconds: float) -> None:
        """Lets the lease end by itself so many seconds from now. Raises NotFound."""
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        moment = until.isoformat(timespec="seconds").replace("+00:00", "Z")

        def change(connection: sqlite3.Connection) -> None:
            lease = _get(connection, namespace, id)
            labels = {**lease.labels, references.EXPIRE: moment}
            connection.execute(
                "UPDATE leases SET labels = ?, expires_at = ? WHERE namespace = ? AND id = ?",
                (
                    label_rules.pack(labels),
                    references.expiry(labels, f'lease "{id}"'),
                    namespace,
                    id,
                ),
            )

        await self._commits.write(change)

    async def delete(self, namespace: str, id: str, *, sync: bool = False) -> None:
        """Drops the lease; with ``sync`` returns after a garbage collection. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, id)
            delete_row(connection, namespace, id)

        await self._commits.write(remove, deleted=True)
        if sync and self._commits.collector is not None:
            await self._commits.collector.collect()

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """All that match, in order of id. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        rows = self._commits.read(
            lambda c: fetched(
                c,
                "SELECT id, created_at, labels FROM leases WHERE namespace = ?",
                (namespace,),
                "id",
            )
        )
        leases = readable(rows, _lease, "lease")
        return [lease for lease in leases if wanted.always or wanted.match(_adaptor(lease))]

    async def add_resource(self, namespace: str, id: str, resource: Resource) -> None:
        """Raises NotFound (lease), Unimplemented (type), InvalidArgument."""
        node = _node(resource)

        def add(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, id)
            references.add(connection, namespace, id, node)

        await self._commits.write(add)

    async def delete_resource(self, namespace: str, id: str, resource: Resource) -> None:
        """Raises NotFound (lease), Unimplemented (type), InvalidArgument."""
        node = _node(resource)

        def remove(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, id)
            references.remove(connection, namespace, id, node)

        await self._commits.write(remove, deleted=True)

    def list_resources(self, namespace: str, id: str) -> Sequence[Resource]:
        """In order of type and id. Raises NotFound (lease)."""

        def resources(connection: sqlite3.Connection) -> Sequence[Resource]:
            _require(connection, namespace, id)
            return [Resource(*node) for node in references.held(connection, namespace, id)]

        return self._commits.read(resources)


def delete_row(connection: sqlite3.Connection, namespace: str, id: str) -> None:
    """Deletes a lease with what it holds; also used by garbage collection."""
    connection.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, id))
    references.drop(connection, namespace, references.Node(references.LEASES, id))


def _get(connection: sqlite3.Connection, namespace: str, id: str) -> Lease:
    row = connection.execute(
        "SELECT id, created_at, labels FROM leases WHERE namespace = ? AND id = ?",
        (namespace, id),
    ).fetchone()
    if row is None:
        raise _not_found(id)
    return _lease(row)


def _require(connection: sqlite3.Connection, namespace: str, id: str) -> None:
    """Raises NotFound; a damaged record will do."""
    found = connection.execute(
        "SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, id)
    ).fetchone()
    if found is None:
        raise _not_found(id)


def _not_found(id: str) -> NotFound:
    return NotFound(f'lease "{id}": not found')


def _lease(row: tuple[Any, ...]) -> Lease:
    return Lease(row[0], row[1], label_rules.unpack(row[2]))


def _random_id() -> str:
    return f"{time.time_ns() % 1_000_000_000}-{secrets.token_urlsafe(3)}"


def _checked_id(id: str) -> str:
    if len(id.encode()) > MAX_ID or "\0" in id:
        raise InvalidArgument(f"lease.id: must have at most {MAX_ID} bytes and no zero byte")
    return id


def _node(resource: Resource) -> references.Node:
    """Raises Unimplemented (type), InvalidArgument."""
    noun, slash, rest = resource.type.partition("/")
    if noun in (references.CONTENT, references.INGESTS, references.IMAGES):
        if slash:
            raise InvalidArgument(f"resource.type: {resource.type!r} must not have a part after /")
        if noun == references.CONTENT:
            check_digest(resource.id, "resource.id")
    elif noun == "snapshots":
        if not rest or "/" in rest:
            raise InvalidArgument(f"resource.type: {resource.type!r} must be snapshots/NAME")
    else:
        raise Unimplemented(f"resource type {resource.type} not supported yet: not implemented")
    if not resource.id:
        raise InvalidArgument("resource.id: must not be empty")
    return references.Node(resource.type, resource.id)


def _adaptor(lease: Lease) -> filter_language.Adaptor:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return lease.id, bool(lease.id)
        if path[0] == "labels":
            return filter_language.lookup(path[1:], lease.labels)
        return "", False

    return field
