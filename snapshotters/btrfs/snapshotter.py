"""Snapshots as btrfs subvolumes: an active one is a copy of its parent that shares all extents.

``snapshots/<id>`` is the subvolume of an active snapshot, or of a view of nothing;
``snapshots/<id>.committed`` the read-only one of a committed snapshot, a copy that commit makes,
so that who still writes to the active one does not reach it. A view of a parent is that parent's
subvolume, mounted read-only. The calls run in threads: each waits for a transaction of the disk.
"""

# Plain os calls, as everywhere in snapshotters.
# ruff: noqa: PTH101
from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from snapshotters import index
from snapshotters.base import DirectorySnapshotter, disk_error
from snapshotters.trash import remove_tree
from supervisord.aio.locks import KeyedLock
from supervisord.contracts.errors import FailedPrecondition, NotFound
from supervisord.contracts.snapshots import Kind, Mount, Usage
from supervisord.linux import btrfs
from supervisord.linux.durable import make_folder
from supervisord.sqlite.database import Database

log = logging.getLogger(__name__)

_COMMITTED = ".committed"
_MODE = 0o755


class BtrfsSnapshotter(DirectorySnapshotter):
    """Make it with ``open``."""

    def __init__(
        self, root: Path, database: Database, device: str, *, sync_remove: bool = False
    ) -> None:
        super().__init__(root, database, sync_remove=sync_remove)
        self._device = device
        self._keys = KeyedLock()

    @classmethod
    async def open(cls, root: Path | str, *, sync_remove: bool = False) -> BtrfsSnapshotter:
        """Opens the snapshotter at ``root``, made if it is not there.

        Raises FailedPrecondition where that is not on btrfs, DataLoss."""
        root = Path(root)
        device = await asyncio.to_thread(_make_root, root)
        database = await Database.open(root / "metadata.sqlite", index.MIGRATIONS)
        try:
            opened = cls(root, database, device, sync_remove=sync_remove)
            await opened._repair()
            return opened
        except BaseException:
            await database.close()
            raise

    async def _repair(self) -> None:
        """Makes subvolumes again that a power failure took from a row which it left: those of
        active snapshots, and empty ones. A committed one that is not there is reported."""
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            await asyncio.to_thread(self._repair_page, page)
            after = page[-1].info.name

    def _repair_page(self, page: Sequence[index.Row]) -> None:
        for row in page:
            if row.info.kind == Kind.COMMITTED:
                if not btrfs.is_subvolume(self._committed(row.id)):
                    log.error("snapshot %s: its subvolume %d is gone", row.info.name, row.id)
            elif not btrfs.is_subvolume(self._tree(row.id)):
                try:
                    self._make(row.id, row.info.kind, (row.parent_id,) if row.parent_id else ())
                except OSError as error:  # its parent's is gone too: the others need not wait
                    log.error("snapshot %s: %s", row.info.name, error)

    # The contract --------------------------------------------------------------------------

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        self._check_open()
        await self._owner.shielded(self._commit(name, key, labels, parent), "commit")

    async def cleanup(self) -> None:
        await self._destroy(*await self._orphans())

    async def _orphans(self) -> list[str]:
        names = await asyncio.to_thread(os.listdir, self._folder)
        # In this order: what is being made now either shows here or has its row by then.
        making = set(self._making)
        known = await asyncio.to_thread(self._known)
        known |= {name for id in making for name in (str(id), f"{id}{_COMMITTED}")}
        return sorted(set(names) - known)

    def _known(self) -> set[str]:
        known: set[str] = set()
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            for row in page:
                committed = row.info.kind == Kind.COMMITTED
                known.add(f"{row.id}{_COMMITTED}" if committed else str(row.id))
            after = page[-1].info.name
        return known

    # One snapshot --------------------------------------------------------------------------

    def _tree(self, id: int) -> str:
        return self._path(id)

    def _committed(self, id: int) -> str:
        return f"{self._path(id)}{_COMMITTED}"

    def _place(self, row: index.Row) -> str | None:
        if row.info.kind == Kind.COMMITTED:
            return self._committed(row.id)
        return None if row.info.kind == Kind.VIEW and row.parent_id else self._tree(row.id)

    def _count(self, row: index.Row) -> int | None:
        return None  # the disk has checksums of its own

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> index.Chain:
        async with self._keys.hold(key):
            parents = self._database.read(partial(index.parent_of_new, key=key, parent=parent))
            id = self._take_id()
            try:
                await asyncio.to_thread(self._make, id, kind, parents)
                return await self._database.write(
                    partial(_insert, id=id, kind=kind, key=key, parent=parent, labels=labels)
                )
            except OSError as error:
                await self._drop(id)
                if parents and not btrfs.is_subvolume(self._committed(parents[0])):
                    raise NotFound(f"parent snapshot {parent!r}: its subvolume is gone") from error
                raise disk_error(key, error) from error
            except BaseException:
                await self._drop(id)
                raise
            finally:
                self._making.discard(id)

    def _make(self, id: int, kind: Kind, parents: Sequence[int]) -> None:
        if not parents:
            btrfs.create(self._tree(id))
            os.chmod(self._tree(id), _MODE)
        elif kind == Kind.ACTIVE:
            btrfs.snapshot(self._committed(parents[0]), self._tree(id), read_only=False)

    async def _commit(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        """The committed copy, then the row, then the active one goes."""
        async with self._keys.hold(key):
            row = self._database.read(partial(index.get, name=key))
            if row.info.kind != Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is not active")
            made = f"{row.id}{_COMMITTED}"
            self._making.add(row.id)
            try:
                usage = await asyncio.to_thread(self._freeze, row)
                await self._database.write(
                    partial(
                        index.commit,
                        name=name,
                        key=key,
                        parent=parent,
                        labels=dict(labels),
                        usage=usage,
                    )
                )
            except OSError as error:
                await self._destroy(made)
                raise disk_error(key, error) from error
            except BaseException:
                if made not in await asyncio.to_thread(self._known):
                    await self._destroy(made)
                raise
            finally:
                self._making.discard(row.id)
        await self._destroy(str(row.id))

    def _freeze(self, row: index.Row) -> Usage:
        copy = self._committed(row.id)
        btrfs.destroy(copy)  # what a crash left of an earlier try
        btrfs.snapshot(self._tree(row.id), copy, read_only=True)
        return Usage(*btrfs.usage_since(copy, self._shared(row)))

    def _shared(self, row: index.Row) -> int:
        """Up to which transaction the contents of an active snapshot are its parent's."""
        return btrfs.made_at(self._tree(row.id)) if row.parent_id else 0

    async def _measure(self, row: index.Row) -> Usage:
        try:
            return await asyncio.to_thread(self._measure_now, row)
        except FileNotFoundError:
            raise NotFound(f"snapshot {row.info.name!r}: its subvolume is gone") from None
        except OSError as error:
            raise disk_error(row.info.name, error) from error

    def _measure_now(self, row: index.Row) -> Usage:
        btrfs.sync(self._tree(row.id))  # what was just written is in no tree yet
        return Usage(*btrfs.usage_since(self._tree(row.id), self._shared(row)))

    async def _remove_tree(self, name: str) -> None:
        """Of a snapshot that is no more, whatever it was."""
        await self._destroy(name, f"{name}{_COMMITTED}")

    async def _destroy(self, *names: str) -> None:
        for name in names:
            async with self._trees.hold(name), self._removals:
                await asyncio.to_thread(_remove, f"{self._folder}/{name}")

    # Mounts --------------------------------------------------------------------------------

    async def _described(self, chain: index.Chain) -> Sequence[Mount]:
        try:
            return await asyncio.to_thread(self._mounts, chain)
        except OSError as error:
            raise disk_error(str(chain.id), error) from error

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        view = chain.kind == Kind.VIEW
        shown = self._tree(chain.id)
        if view and chain.parents:
            shown = self._committed(chain.parents[0])
        options = (f"subvolid={btrfs.subvolume_id(shown)}", *(("ro",) if view else ()))
        return [Mount("btrfs", self._device, options)]


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


def _remove(path: str) -> None:
    if not btrfs.is_subvolume(path):
        remove_tree(Path(path))
        return
    try:
        btrfs.destroy(path)
    except OSError as error:
        log.warning("could not remove the subvolume %s: %s", path, error)


def _make_root(root: Path) -> str:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    device = btrfs.device_of(str(there))
    if device is None:
        raise FailedPrecondition(f"path {root} must be on a btrfs filesystem")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(root / "snapshots")
    return device
