"""Snapshots on overlayfs: ``snapshots/<id>/fs`` holds changes, ``snapshots/<id>/work`` is the
kernel's.

A snapshot over parents is mounted as an overlay of all their ``fs`` directories; one without is a
bind mount of its own, and a view of a single layer a read-only bind mount of that. Preparing one
costs three mkdirs and one row, in a single turn of the index's writer thread. Nothing is mounted
here.
"""

# Plain os calls, because this runs for every container.
# ruff: noqa: PTH101, PTH102, PTH112, PTH116
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from snapshotters import index
from snapshotters.base import DirectorySnapshotter, disk_error, with_label
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.snapshots import Info, Kind, Mount
from supervisord.linux.spread import spread
from supervisord.sqlite.database import Database

from .idmap import GID_LABEL, UID_LABEL, root_owner
from .inherit import inherit
from .probe import overlay_options

log = logging.getLogger(__name__)

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"

_FS_MODE = 0o755
_WORK_MODE = 0o711


class OverlaySnapshotter(DirectorySnapshotter):
    """Make it with ``open``."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        options: Sequence[str] = (),
        sync_remove: bool = False,
        upperdir_label: bool = False,
        remap_ids: bool = False,
    ) -> None:
        super().__init__(root, database, sync_remove=sync_remove)
        self._options = tuple(options)
        self._upperdir_label = upperdir_label
        self._remap_ids = remap_ids

    @classmethod
    async def open(
        cls,
        root: Path | str,
        *,
        mount_options: Sequence[str] = (),
        sync_remove: bool = False,
        upperdir_label: bool = False,
        remap_ids: bool = False,
    ) -> OverlaySnapshotter:
        """Opens the snapshotter at ``root``, made if it is not there.

        ``mount_options`` are added to overlay (not bind) mounts; ``index=off`` and ``userxattr``
        join them where the kernel knows or needs them. ``upperdir_label`` shows each snapshot's
        ``fs`` as a label; ``remap_ids`` turns the id mapping labels into mount options, for
        mounters that can map ids. Raises InvalidArgument for a root that cannot stand in mount
        options, DataLoss."""
        root = Path(root)
        if any(character in str(root) for character in ":,\\"):
            raise InvalidArgument(f"root: {str(root)!r} must not contain ':', ',' or a backslash")
        options = await asyncio.to_thread(_make_root, root, tuple(mount_options))
        database = await Database.open(root / "metadata.sqlite", index.MIGRATIONS)
        try:
            opened = cls(
                root,
                database,
                options=options,
                sync_remove=sync_remove,
                upperdir_label=upperdir_label,
                remap_ids=remap_ids,
            )
            await opened._repair()
            return opened
        except BaseException:
            await database.close()
            raise

    async def _repair(self) -> None:
        """Makes directories again that a power failure took from a row which it left: rows are
        synced, mkdirs only ordered. Those of active snapshots were empty then; a committed one
        that is not there is reported."""
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            await asyncio.to_thread(self._repair_page, page)
            after = page[-1].info.name

    def _repair_page(self, page: Sequence[index.Row]) -> None:
        for row in page:
            parts = ["fs", "work"] if row.info.kind == Kind.ACTIVE else ["fs"]
            if all(os.path.isdir(f"{self._path(row.id)}/{part}") for part in parts):
                continue
            if row.info.kind == Kind.COMMITTED:
                log.error("snapshot %s: its directory %d is gone", row.info.name, row.id)
                continue
            log.warning("snapshot %s: making its directory %d again", row.info.name, row.id)
            parents = (row.parent_id,) if row.parent_id else ()
            try:
                self._make(row.id, row.info.kind, parents, row.info.labels)
            except OSError as error:  # its parent's is gone too: the others must not wait for it
                log.error("snapshot %s: %s", row.info.name, error)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        row = self._database.read(partial(index.get, name=key))
        if parent and not row.parent_id:
            parents = self._database.read(partial(index.chain_of_parent, parent=parent))
            lowers = [self._tree(id) for id in parents]
            try:
                await asyncio.to_thread(inherit, self._tree(row.id), lowers)
            except OSError as error:
                raise disk_error(key, error) from error
        await super().commit(name, key, labels, parent)

    def _tree(self, id: int) -> str:
        return f"{self._folder}/{id}/fs"

    def _shown(self, row: index.Row) -> Info:
        if self._upperdir_label:
            return with_label(row.info, UPPERDIR_LABEL, self._tree(row.id))
        return row.info

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> index.Chain:
        id = self._take_id()
        try:
            return await self._database.write(
                partial(self._insert, id=id, kind=kind, key=key, parent=parent, labels=labels)
            )
        except BaseException:
            await self._drop(id)
            raise
        finally:
            self._making.discard(id)

    def _insert(
        self,
        connection: sqlite3.Connection,
        id: int,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
    ) -> index.Chain:
        """In the writer thread, so that a refused create never touches the disk."""
        parents = index.parent_of_new(connection, key, parent)
        try:
            self._make(id, kind, parents, labels)
        except OSError as error:
            raise disk_error(key, error) from error
        return index.insert(connection, id, kind, key, parents, labels)

    def _make(self, id: int, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]) -> None:
        folder = self._path(id)
        tree = f"{folder}/fs"
        _mkdir(folder, 0o700)
        _mkdir(tree, _FS_MODE)
        if kind == Kind.ACTIVE:
            _mkdir(f"{folder}/work", _WORK_MODE)
        owner = root_owner(labels)
        mode = _FS_MODE
        if parents:  # the merged root looks like the top layer's: go on with the parent's
            above = os.stat(self._tree(parents[0]))
            mode = above.st_mode & 0o7777
            owner = owner or (above.st_uid, above.st_gid)
        if owner is not None:
            os.chown(tree, *owner)
        os.chmod(tree, mode)

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        options = self._idmap_options(chain.labels)
        if not chain.parents:
            access = "ro" if chain.kind == Kind.VIEW else "rw"
            return [Mount("bind", self._tree(chain.id), (*options, access, "rbind"))]
        if chain.kind == Kind.VIEW and len(chain.parents) == 1:
            return [Mount("bind", self._tree(chain.parents[0]), (*options, "ro", "rbind"))]
        if chain.kind == Kind.ACTIVE:
            options.append(f"workdir={self._path(chain.id)}/work")
            options.append(f"upperdir={self._tree(chain.id)}")
        options.append("lowerdir=" + ":".join(map(self._tree, chain.parents)))
        return [Mount("overlay", "overlay", (*options, *self._options))]

    def _idmap_options(self, labels: Mapping[str, str]) -> list[str]:
        if not self._remap_ids:
            return []
        pairs = (("uidmap", UID_LABEL), ("gidmap", GID_LABEL))
        return [f"{option}={labels[label]}" for option, label in pairs if label in labels]


def _mkdir(path: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)


def _make_root(root: Path, mount_options: tuple[str, ...]) -> tuple[str, ...]:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    (root / "snapshots").mkdir(mode=0o700, exist_ok=True)
    spread(f"{root}/snapshots")
    return (*mount_options, *overlay_options(str(root), mount_options))
