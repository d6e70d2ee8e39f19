"""Sweeps what nothing keeps; implements contracts.leases.Sweepable.

The mark (``marking``) runs on a read-only connection in a thread, where it holds up nobody. What it
found is deleted in writes of a bounded size. Where anything was written in between, the write looks
at what was found again, and marks anew itself if any of it may have got a reference. Resources
outside of the metadata end next; files and backend snapshots go last (removals).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from protos.containerd.events import events_pb2
from protos.containerd.services.images.v1 import images_pb2
from supervisord.contracts.collectible import CollectibleStore
from supervisord.contracts.leases import Swept

from . import content_rows, images, leases, nodes, snapshot_rows
from .commits import Commits
from .marking import Found, Outside, garbage, in_pieces, is_still
from .removals import Removals, note_blob, note_ingest, note_snapshot

log = logging.getLogger(__name__)

_UNKNOWN = -1
"""Instead of a count of changes: what is beside the rows has changed, too."""


class Garbage:
    """``open_ingests`` tells which ingests have a writer; they stay whatever their rows say."""

    def __init__(
        self,
        commits: Commits,
        removals: Removals,
        open_ingests: Callable[[], frozenset[tuple[str, str]]],
    ) -> None:
        self._commits = commits
        self._database = commits.database
        self._removals = removals
        self._open_ingests = open_ingests
        self._stores: dict[str, CollectibleStore] = {}

    def attach(self, store: CollectibleStore) -> None:
        """Has what lives outside of the metadata take part. Raises ValueError for a kind that is
        attached already, or that is no plain word."""
        kind = store.kind
        if kind in self._stores or not kind.isalnum() or kind in ("content", "image", "snapshot"):
            raise ValueError(f"resources of kind {kind!r} cannot be attached")
        self._stores[kind] = store

    def outside(self) -> Outside:
        """What is there at this moment beside the rows."""
        return Outside(
            tuple((kind, r) for kind, store in self._stores.items() for r in store.resources()),
            self._open_ingests(),
        )

    async def sweep(self) -> Swept:
        """One whole collection; answers what went, when the data is gone too."""
        gone: list[Found] = []
        began = time.monotonic()
        beside, changes = self.outside(), self._database.changes
        left = await asyncio.to_thread(self._pieces, beside)
        while left:
            before, beside = beside, self.outside()
            seen = changes if beside == before else _UNKNOWN
            work = partial(_sweep, pieces=left, changes=seen, beside=beside)
            deleted, left, changes = await self._database.write(work, freeing=True)
            gone += deleted
            self._tell(deleted)
            await self._end(beside, deleted)
        pause = time.monotonic() - began
        await self._removals.drain(cleanup=True)
        if gone:
            log.debug("garbage collection deleted %d records", len(gone))
        return Swept(Counter(nodes.word(kind) for _, kind, _ in gone), pause)

    def marked(self, beside: Outside) -> list[Found]:
        """What is garbage now; in a thread."""
        return self._database.read(lambda c: garbage(c, time.time_ns(), beside))

    def _pieces(self, beside: Outside) -> list[list[Found]]:
        return self._database.read(lambda c: in_pieces(c, garbage(c, time.time_ns(), beside)))

    def _tell(self, deleted: Sequence[Found]) -> None:
        for namespace, kind, key in deleted:
            if kind == nodes.IMAGES:
                image = images_pb2.ImageDelete(name=key)
                self._commits.publish(namespace, "/images/delete", image)
            elif nodes.is_snapshot(kind):
                snapshotter = nodes.snapshotter(kind)
                snapshot = events_pb2.SnapshotRemove(key=key, snapshotter=snapshotter)
                self._commits.publish(namespace, "/snapshot/remove", snapshot)

    async def _end(self, beside: Outside, deleted: Sequence[Found]) -> None:
        """Ends what is no row. A store that fails is asked again by the next collection."""
        ended = {found for found in deleted if nodes.is_outside(found.kind)}
        for kind, resource in beside.resources if ended else ():
            if Found(resource.namespace, nodes.outside(kind), resource.key) not in ended:
                continue
            try:
                await self._stores[kind].collect(resource)
            except Exception as error:
                log.error("%s %r is not collected: %s", kind, resource.key, error, exc_info=error)


def _sweep(
    connection: sqlite3.Connection, *, pieces: list[list[Found]], changes: int, beside: Outside
) -> tuple[list[Found], list[list[Found]], int]:
    """Deletes one piece of garbage; answers it, what is left for other writes, and the changes
    that there are then if nobody else writes. ``changes`` are those at which it was found."""
    if connection.total_changes != changes:
        found, now = [one for piece in pieces for one in piece], time.time_ns()
        if changes == _UNKNOWN or not is_still(connection, found, now, beside):
            pieces = in_pieces(connection, garbage(connection, now, beside))
    chosen, left = (pieces[0], pieces[1:]) if pieces else ([], [])
    snapshots: list[tuple[int, str, str]] = []
    for namespace, kind, key in chosen:
        if kind == nodes.LEASES:
            leases.delete_row(connection, namespace, key)
        elif kind == nodes.IMAGES:
            images.delete_row(connection, namespace, key)
        elif kind == nodes.INGESTS:
            row = content_rows.ingest(connection, namespace, key)
            content_rows.delete_ingest(connection, namespace, key)
            if row is not None:
                note_ingest(connection, row.file)
        elif kind == nodes.CONTENT:
            content_rows.delete(connection, namespace, key)
            note_blob(connection, key)
        elif nodes.is_snapshot(kind):
            snapshotter = nodes.snapshotter(kind)
            backend, created_at = snapshot_rows.backend_of(connection, namespace, snapshotter, key)
            snapshot_rows.delete(connection, namespace, snapshotter, key)
            snapshots.append((created_at, snapshotter, backend))
    # A child is always younger than its parent: the youngest go first.
    for _, snapshotter, backend in sorted(snapshots, reverse=True):
        note_snapshot(connection, snapshotter, backend)
    return chosen, left, connection.total_changes
