"""Mark and sweep over the rows; implements contracts.leases.Sweepable.

Marking is one recursive query over ``refs``, from the roots: leases and images that have not
expired, containers, sandboxes, ingests that have not expired, and what carries ``gc.root``. It
runs first on a read-only connection in a thread, where it holds up nobody. Only if that finds
garbage, the same query runs again inside a write, and what it finds there is deleted in that
write: nothing can get a reference in between. Files and backend snapshots go afterwards (removals).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Set
from typing import NamedTuple

from protos.containerd.events import events_pb2
from protos.containerd.services.images.v1 import images_pb2
from supervisord.contracts.scope import Scope
from supervisord.contracts.streams import Leased
from supervisord.sqlite.database import Database

from . import content_rows, images, leases, references, snapshot_rows
from .commits import Commits
from .removals import Removals, note_blob, note_ingest, note_snapshot

log = logging.getLogger(__name__)

_AT_ONCE = 1000

# ``flat`` is set for what a flat lease keeps: from there only flat edges are followed.
_GARBAGE = """
WITH RECURSIVE live(namespace, kind, key, flat) AS (
    SELECT namespace, 'leases', id, flat FROM leases
        WHERE expires_at IS NULL OR expires_at >= :now
    UNION SELECT namespace, 'images', name, 0 FROM images
        WHERE expires_at IS NULL OR expires_at >= :now
    UNION SELECT namespace, 'containers', id, 0 FROM containers
    UNION SELECT namespace, 'sandboxes', id, 0 FROM sandboxes
    UNION SELECT namespace, 'ingests', ref, 0 FROM ingests WHERE expires_at >= :now
    UNION SELECT namespace, 'content', digest, 0 FROM blobs WHERE root
    UNION SELECT namespace, 'snapshots/' || snapshotter, key, 0 FROM snapshots WHERE root
    UNION SELECT refs.namespace, refs.to_kind, refs.to_key, live.flat
        FROM live CROSS JOIN refs ON refs.namespace = live.namespace
            AND refs.kind = live.kind AND refs.key = live.key
        WHERE refs.flat >= live.flat
)
SELECT namespace, 'leases', id FROM leases
UNION ALL SELECT namespace, 'images', name FROM images
UNION ALL SELECT namespace, 'ingests', ref FROM ingests
UNION ALL SELECT namespace, 'content', digest FROM blobs
UNION ALL SELECT namespace, 'snapshots/' || snapshotter, key FROM snapshots
EXCEPT SELECT namespace, kind, key FROM live
"""


class _Found(NamedTuple):
    namespace: str
    kind: str
    key: str


class Garbage:
    """``open_ingests`` tells which ingests have a writer; they stay whatever their rows say."""

    def __init__(
        self,
        commits: Commits,
        removals: Removals,
        open_ingests: Callable[[], frozenset[tuple[str, str]]],
    ) -> None:
        self._commits = commits
        self._removals = removals
        self._open_ingests = open_ingests
        self._leased: list[Leased] = []

    def attach(self, leased: Leased) -> None:
        """Has what lives under leases told when they are gone."""
        self._leased.append(leased)

    async def sweep(self) -> int:
        """One whole collection; answers how many records went, when their data is gone too."""
        database = self._commits.database
        gone = 0
        while await asyncio.to_thread(self._any, database):
            kept = self._open_ingests()
            deleted, more = await database.write(lambda c: _sweep(c, kept), freeing=True)  # noqa: B023
            gone += len(deleted)
            self._tell(deleted)
            if not more:
                break
        for leased in self._leased:
            for scope in await asyncio.to_thread(self._without, leased.leases()):
                await leased.expire(scope)
        await self._removals.drain(cleanup=True)
        if gone:
            log.debug("garbage collection deleted %d records", gone)
        return gone

    def _any(self, database: Database) -> bool:
        kept = self._open_ingests()
        return any(not _is_kept(found, kept) for found in database.read(_garbage))

    def _without(self, scopes: Set[Scope]) -> list[Scope]:
        """Those of which the lease is gone."""
        query = "SELECT 1 FROM leases WHERE namespace = ? AND id = ?"

        def look(connection: sqlite3.Connection) -> list[Scope]:
            return [
                scope
                for scope in scopes
                if connection.execute(query, (scope.namespace, scope.lease)).fetchone() is None
            ]

        return self._commits.read(look) if scopes else []

    def _tell(self, deleted: list[_Found]) -> None:
        for found in deleted:
            if found.kind == references.IMAGES:
                image = images_pb2.ImageDelete(name=found.key)
                self._commits.publish(found.namespace, "/images/delete", image)
            elif found.kind.startswith(references.snapshots("")):
                snapshotter = found.kind.removeprefix(references.snapshots(""))
                snapshot = events_pb2.SnapshotRemove(key=found.key, snapshotter=snapshotter)
                self._commits.publish(found.namespace, "/snapshot/remove", snapshot)


def _garbage(connection: sqlite3.Connection) -> list[_Found]:
    rows = connection.execute(_GARBAGE, {"now": time.time_ns()}).fetchall()
    return [_Found(*row) for row in rows]


def _is_kept(found: _Found, kept: frozenset[tuple[str, str]]) -> bool:
    return found.kind == references.INGESTS and (found.namespace, found.key) in kept


def _sweep(
    connection: sqlite3.Connection, kept: frozenset[tuple[str, str]]
) -> tuple[list[_Found], bool]:
    """Deletes garbage; answers what, and whether more is left for another write."""
    garbage = [found for found in _garbage(connection) if not _is_kept(found, kept)]
    chosen = garbage[:_AT_ONCE]
    snapshots: list[tuple[int, str, str]] = []
    for namespace, kind, key in chosen:
        if kind == references.LEASES:
            leases.delete_row(connection, namespace, key)
        elif kind == references.IMAGES:
            images.delete_row(connection, namespace, key)
        elif kind == references.INGESTS:
            row = content_rows.ingest(connection, namespace, key)
            content_rows.delete_ingest(connection, namespace, key)
            if row is not None:
                note_ingest(connection, row.file)
        elif kind == references.CONTENT:
            content_rows.delete(connection, namespace, key)
            note_blob(connection, key)
        else:
            snapshotter = kind.removeprefix(references.snapshots(""))
            backend, created_at = snapshot_rows.backend_of(connection, namespace, snapshotter, key)
            snapshot_rows.delete(connection, namespace, snapshotter, key)
            snapshots.append((created_at, snapshotter, backend))
    # A child is always younger than its parent: the youngest go first.
    for _, snapshotter, backend in sorted(snapshots, reverse=True):
        note_snapshot(connection, snapshotter, backend)
    return chosen, len(chosen) < len(garbage)
