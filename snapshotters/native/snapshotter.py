"""Snapshots as whole directory trees: an active one is a copy of its parent.

Made for filesystems that overlayfs cannot stand on; slow and large, but without surprises. The
copy runs in a thread, shares extents where the filesystem can (reflink), and is complete and on the
disk before its row is written. A view of a parent has no directory: it is that parent, mounted
read-only.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from snapshotters import index
from snapshotters.base import DirectorySnapshotter, disk_error
from snapshotters.durable import sync_tree
from supervisord.aio.locks import KeyedLock
from supervisord.contracts.errors import DataLoss, FailedPrecondition
from supervisord.contracts.snapshots import Kind, Mount
from supervisord.linux.durable import make_folder
from supervisord.linux.spread import spread
from supervisord.sqlite.database import Database

from .copy import copy_tree

log = logging.getLogger(__name__)

_MODE = 0o755


class NativeSnapshotter(DirectorySnapshotter):
    """Make it with ``open``."""

    def __init__(self, root: Path, database: Database, *, sync_remove: bool = False) -> None:
        super().__init__(root, database, sync_remove=sync_remove)
        self._keys = KeyedLock()
        self._copied: Counter[int] = Counter()

    @classmethod
    async def open(cls, root: Path | str, *, sync_remove: bool = False) -> NativeSnapshotter:
        """Opens the snapshotter at ``root``, made if it is not there."""
        root = Path(root)
        await asyncio.to_thread(_make_root, root)
        database = await Database.open(root / "metadata.sqlite", index.MIGRATIONS)
        try:
            opened = cls(root, database, sync_remove=sync_remove)
            await opened._repair()
            return opened
        except BaseException:
            await database.close()
            raise

    async def _repair(self) -> None:
        """Makes empty directories again that a power failure took from a row which it left: rows
        are synced, mkdirs only ordered. Any other that is not there is reported."""
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            await asyncio.to_thread(self._repair_page, page)
            after = page[-1].info.name

    def _repair_page(self, page: Sequence[index.Row]) -> None:
        for row in page:
            shared = row.info.kind == Kind.VIEW and row.parent_id
            if shared or Path(self._tree(row.id)).is_dir():
                continue
            if row.info.kind == Kind.COMMITTED or row.parent_id:
                log.error("snapshot %s: its directory %d is gone", row.info.name, row.id)
                continue
            log.warning("snapshot %s: making its directory %d again", row.info.name, row.id)
            try:
                _fill(self._tree(row.id), None)
            except OSError as error:
                log.error("snapshot %s: %s", row.info.name, error)

    def _tree(self, id: int) -> str:
        return self._path(id)

    def _place(self, row: index.Row) -> str | None:
        return None if row.info.kind == Kind.VIEW and row.parent_id else self._tree(row.id)

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> index.Chain:
        async with self._keys.hold(key):
            id = self._take_id()
            try:
                await self._make(id, kind, key, parent)
                return await self._database.write(
                    partial(_insert, id=id, kind=kind, key=key, parent=parent, labels=labels)
                )
            except BaseException:
                await self._drop(id)
                raise
            finally:
                self._making.discard(id)

    async def _make(self, id: int, kind: Kind, key: str, parent: str) -> None:
        parents = self._database.read(partial(index.parent_of_new, key=key, parent=parent))
        if kind == Kind.VIEW and parents:
            if not await asyncio.to_thread(Path(self._tree(parents[0])).is_dir):
                raise _lost(parent, parents[0])
            return
        source = self._tree(parents[0]) if parents else None
        if parents:
            self._copied[parents[0]] += 1
        try:
            await asyncio.to_thread(_fill, self._tree(id), source)
        except OSError as error:
            if source is not None and not await asyncio.to_thread(Path(source).is_dir):
                raise _lost(parent, parents[0]) from error
            raise disk_error(key, error) from error
        finally:
            if parents:
                self._copied[parents[0]] -= 1
                self._copied += Counter()  # forgets the zeros

    def _remove_row(self, connection: sqlite3.Connection, key: str) -> index.Row:
        row = super()._remove_row(connection, key)
        if self._copied[row.id]:
            raise FailedPrecondition(
                f"snapshot {key!r}: cannot remove snapshot with child: one is being made"
            )
        return row

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        view = chain.kind == Kind.VIEW
        shown = chain.parents[0] if view and chain.parents else chain.id
        return [Mount("bind", self._tree(shown), ("rbind", "ro" if view else "rw"))]


def _lost(parent: str, id: int) -> DataLoss:
    return DataLoss(f"parent snapshot {parent!r}: its directory {id} is gone")


def _insert(
    connection: sqlite3.Connection,
    id: int,
    kind: Kind,
    key: str,
    parent: str,
    labels: Mapping[str, str],
) -> index.Chain:
    parents = index.parent_of_new(connection, key, parent)
    return index.insert(connection, id, kind, key, parents, labels)


def _fill(target: str, source: str | None) -> None:
    folder = Path(target)
    folder.mkdir(mode=0o700)
    if source is None:
        folder.chmod(_MODE)
    else:
        sync_tree(target, copy_tree(source, target), str(folder.parent))


def _make_root(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(root / "snapshots")
    spread(f"{root}/snapshots")
