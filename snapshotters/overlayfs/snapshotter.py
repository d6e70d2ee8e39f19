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
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from snapshotters import index
from snapshotters.base import DirectorySnapshotter, disk_error, with_label
from snapshotters.usage import disk_usage
from supervisord.contracts.errors import DataLoss, Error, InvalidArgument
from supervisord.contracts.snapshots import Info, Kind, Mount, Usage
from supervisord.linux import quota
from supervisord.linux.durable import make_folder
from supervisord.linux.spread import spread
from supervisord.sqlite.database import Database

from . import idmap, probe, volatile
from .inherit import inherit
from .projects import Projects

log = logging.getLogger(__name__)

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"

_FS_MODE = 0o755
_WORK_MODE = 0o711


@dataclass(frozen=True, slots=True)
class Settings:
    """How the snapshots of one root are made and mounted.

    ``mount_options`` are added to overlay (not bind) mounts; ``index=off``, ``metacopy=off`` and
    ``userxattr`` join them where the kernel needs them. ``upperdir_label`` shows each snapshot's
    ``fs`` as a label; ``remap_ids`` turns the id mapping labels into mount options (None: where
    this kernel and file system can map ids). ``sync_remove`` and ``sync_commit`` are those of
    ``DirectorySnapshotter``. Active snapshots are counted by project quotas from the id
    ``project_quota`` on, where that is not 0 and the file system counts projects."""

    mount_options: Sequence[str] = ()
    sync_remove: bool = False
    sync_commit: bool = True
    upperdir_label: bool = False
    remap_ids: bool | None = None
    project_quota: int = 0


class OverlaySnapshotter(DirectorySnapshotter):
    """Make it with ``open``."""

    def __init__(
        self, root: Path, database: Database, settings: Settings, projects: Projects | None
    ) -> None:
        super().__init__(
            root,
            database,
            sync_remove=settings.sync_remove,
            sync_commit=settings.sync_commit,
        )
        self._options = tuple(settings.mount_options)
        self._view_options = volatile.without(self._options)
        self._all_volatile = volatile.among(self._options)
        self._knows_volatile = volatile.known()
        self._upperdir_label = settings.upperdir_label
        self._projects = projects
        self.remaps_ids = bool(settings.remap_ids)

    @classmethod
    async def open(cls, root: Path | str, settings: Settings | None = None) -> OverlaySnapshotter:
        """Opens the snapshotter at ``root``, made if it is not there.

        Raises InvalidArgument for a root that cannot stand in mount options, FailedPrecondition
        for a file system that overlayfs cannot stand on, DataLoss."""
        root = Path(root)
        if any(character in str(root) for character in ":,\\"):
            raise InvalidArgument(f"root: {str(root)!r} must not contain ':', ',' or a backslash")
        probed = await asyncio.to_thread(_make_root, root, settings or Settings())
        counted = probed.project_quota > 0
        database = await Database.open(root / "metadata.sqlite", index.MIGRATIONS)
        try:
            projects = Projects(probed.project_quota) if counted else None
            opened = cls(root, database, probed, projects)
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
                if self._projects is not None:
                    self._projects.found(self._tree(row.id))
                continue
            if row.info.kind == Kind.COMMITTED:
                log.error("snapshot %s: its directory %d is gone", row.info.name, row.id)
                continue
            log.warning("snapshot %s: making its directory %d again", row.info.name, row.id)
            parents = (row.parent_id,) if row.parent_id else ()
            try:
                self._make(row.id, row.info.kind, parents, row.info.labels)
            except (OSError, Error) as error:  # its parent's is gone too, or its labels are odd
                log.error("snapshot %s: %s", row.info.name, error)

    async def mounts(self, key: str) -> Sequence[Mount]:
        chain = self._database.read(partial(index.chain, name=key))
        folder = self._path(chain.id)
        if self._is_volatile(chain.kind, chain.parents, chain.labels) or volatile.marked(folder):
            try:
                await asyncio.to_thread(volatile.renew, folder, key)
            except OSError as error:
                raise disk_error(key, error) from error
        return self._mounts(chain)

    def _finish(self, row: index.Row, parent: str) -> Usage:
        if parent and not row.parent_id:
            parents = self._database.read(partial(index.chain_of_parent, parent=parent))
            self._check_lowers(parent, parents)
            inherit(self._tree(row.id), [self._tree(id) for id in parents])
        return super()._finish(row, parent)

    async def _measure(self, row: index.Row) -> Usage:
        return await self._measured(row, partial(self._counted, row))

    def _counted(self, row: index.Row) -> Usage:
        if self._projects is not None:
            work = f"{self._path(row.id)}/work"
            counted = self._projects.usage(self._tree(row.id), work)
            if counted is not None:
                return counted
        return disk_usage(self._tree(row.id))

    async def _remove_tree(self, name: str) -> None:
        await super()._remove_tree(name)
        if self._projects is not None and not os.path.lexists(f"{self._folder}/{name}"):
            self._projects.drop(f"{self._folder}/{name}/fs")

    def _is_volatile(self, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]) -> bool:
        if kind != Kind.ACTIVE or not parents or not self._knows_volatile:
            return False
        return self._all_volatile or volatile.asked(labels)

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
        self._check_lowers(parent, parents)
        try:
            self._make(id, kind, parents, labels)
        except OSError as error:
            raise disk_error(key, error) from error
        return index.insert(connection, id, kind, key, parents, labels)

    def _check_lowers(self, name: str, ids: Sequence[int]) -> None:
        """Raises DataLoss if the directory of one of these is gone: of ``name``, or below it."""
        if not ids:
            return
        top = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for id in ids:  # from there the way to each is short, and there may be hundreds
                try:
                    there = stat.S_ISDIR(os.stat(f"{id}/fs", dir_fd=top).st_mode)
                except FileNotFoundError:
                    there = False
                if not there:
                    raise DataLoss(f"parent snapshot {name!r}: its directory {id} is gone")
        finally:
            os.close(top)

    def _make(self, id: int, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]) -> None:
        folder = self._path(id)
        tree = f"{folder}/fs"
        _mkdir(folder, 0o700)
        _mkdir(tree, _FS_MODE)
        owner = made = (os.geteuid(), os.getegid())
        mode = _FS_MODE
        if parents:  # the merged root looks like the top layer's: go on with the parent's
            above = os.stat(self._tree(parents[0]))
            mode, owner = above.st_mode & 0o7777, (above.st_uid, above.st_gid)
        if idmap.mapped(labels):
            there = idmap.owner(labels, *owner)
            if parents or not self.remaps_ids:  # else the mount maps this folder itself
                owner = there
        if owner != made:
            os.chown(tree, *owner)
        os.chmod(tree, mode)
        if kind == Kind.ACTIVE:
            _mkdir(f"{folder}/work", _WORK_MODE)
            if self._projects is not None:
                self._projects.give(tree, f"{folder}/work")
            if self._is_volatile(kind, parents, labels):
                volatile.note(folder)

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        options = idmap.options(chain.labels) if self.remaps_ids else []
        if not chain.parents:
            access = "ro" if chain.kind == Kind.VIEW else "rw"
            return [Mount("bind", self._tree(chain.id), (*options, access, "rbind"))]
        if chain.kind == Kind.VIEW and len(chain.parents) == 1:
            return [Mount("bind", self._tree(chain.parents[0]), (*options, "ro", "rbind"))]
        lower = "lowerdir=" + ":".join([f"{self._folder}/{id}/fs" for id in chain.parents])
        if chain.kind == Kind.VIEW:
            return [Mount("overlay", "overlay", (*options, lower, *self._view_options))]
        options.append(f"workdir={self._path(chain.id)}/work")
        options.append(f"upperdir={self._tree(chain.id)}")
        options.append(lower)
        options += self._options
        if not self._all_volatile and volatile.asked(chain.labels) and self._knows_volatile:
            options.append("volatile")
        return [Mount("overlay", "overlay", tuple(options))]


def _mkdir(path: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)


def _make_root(root: Path, settings: Settings) -> Settings:
    """The root, and the settings with what was found out about it."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(root / "snapshots")
    spread(f"{root}/snapshots")
    probe.check_types(f"{root}/snapshots")
    there = probe.filesystem(str(root))
    if there == "overlay":
        log.warning(
            "%s is on overlayfs itself, which no overlay can write to: mounts will fail", root
        )
    counts = settings.project_quota > 0 and quota.counts_projects(str(root))
    if settings.project_quota and not counts:
        log.warning("%s: its file system counts no projects (prjquota)", root)
    remaps = probe.maps_ids(str(root)) if settings.remap_ids is None else settings.remap_ids
    found = probe.overlay_options(str(root), settings.mount_options)
    return replace(
        settings,
        mount_options=(*settings.mount_options, *found),
        remap_ids=remaps,
        project_quota=settings.project_quota if counts else 0,
    )
