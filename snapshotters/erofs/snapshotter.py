"""Snapshots on erofs: a committed one is a read-only image, an active one an overlay over those.

``snapshots/<id>`` holds ``fs`` and ``work`` of an active snapshot, as overlayfs has them (or
``rwlayer.img``, a file system of limited size), ``layer.erofs`` of a committed one, and
``.erofslayer``, by which differs know that they may put an image there. Commit makes the image of
what is in ``fs`` where no differ did. ``layer.erofs.new`` is one whose row may not be there yet.

Layers are mounted here, once each, and clients get plain overlays of them; see ``layers``. Without
``mount_layers`` nothing is, and clients get the images, to be mounted through the mount manager:
what containerd 2.2 answers.
"""

# Plain os calls, because this runs for every container.
# ruff: noqa: PTH101, PTH102, PTH104, PTH110, PTH112
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from snapshotters import index
from snapshotters.base import DirectorySnapshotter, disk_error
from snapshotters.overlayfs import idmap
from snapshotters.overlayfs.inherit import inherit
from snapshotters.overlayfs.probe import overlay_options
from snapshotters.trash import remove_tree
from supervisord.aio.locks import KeyedLock
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.snapshots import Kind, Mount, Usage
from supervisord.linux.durable import make_folder
from supervisord.linux.mount import mount_all, unmount_all
from supervisord.sqlite.database import Database

from . import image
from .layers import Layers
from .probe import maps_ids
from .stacking import MAX_SIZE_LABEL, Stack, described, plain

log = logging.getLogger(__name__)

LAYER = "layer.erofs"
MARK = ".erofslayer"
_NEW = f"{LAYER}.new"
_WRITABLE = "rwlayer.img"
_FS_MODE = 0o755
_WORK_MODE = 0o711
_CONVERSIONS = 2
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """``mount_options``: of overlays; ``size``: bytes of the writable layer, 0 for a directory;
    ``immutable``, ``verity``: how images are guarded; see the module for ``mount_layers``;
    ``remap_ids`` turns the id mapping labels into mount options (None: where the kernel can)."""

    mount_options: Sequence[str] = ()
    mkfs_options: Sequence[str] = ()
    size: int = 0
    immutable: bool = False
    verity: bool = False
    mount_layers: bool = True
    remap_ids: bool | None = None
    sync_remove: bool = False


class ErofsSnapshotter(DirectorySnapshotter):
    """Make it with ``open``."""

    def __init__(self, root: Path, database: Database, settings: Settings) -> None:
        super().__init__(root, database, sync_remove=settings.sync_remove)
        self._settings = settings
        self.remaps_ids = bool(settings.remap_ids)
        self._layers = Layers(self._folder)
        self._keys = KeyedLock()
        self._conversions = asyncio.Semaphore(_CONVERSIONS)

    @classmethod
    async def open(cls, root: Path | str, settings: Settings | None = None) -> ErofsSnapshotter:
        """Opens the snapshotter at ``root``, made if it is not there.

        Raises InvalidArgument for a root that cannot stand in mount options,
        FailedPrecondition where its file system cannot guard images as asked, DataLoss."""
        root = Path(root)
        if any(character in str(root) for character in ":,\\"):
            raise InvalidArgument(f"root: {str(root)!r} must not contain ':', ',' or a backslash")
        settings = await asyncio.to_thread(_make_root, root, settings or Settings())
        database = await Database.open(root / "metadata.sqlite", index.MIGRATIONS)
        try:
            opened = cls(root, database, settings)
            await opened._repair()
            return opened
        except BaseException:
            await database.close()
            raise

    async def close(self) -> None:
        if self._closed:
            return
        await super().close()
        await asyncio.to_thread(self._layers.close)

    async def _repair(self) -> None:
        """Ends commits that a crash interrupted behind their row, and makes directories again
        that a power failure took. A layer that is not there is reported."""
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            await asyncio.to_thread(self._repair_page, page)
            after = page[-1].info.name

    def _repair_page(self, page: Sequence[index.Row]) -> None:
        for row in page:
            try:
                if row.info.kind == Kind.COMMITTED:
                    self._image(row.id)
                    self._clear(row.id)
                elif not os.path.isdir(self._tree(row.id)):
                    log.warning("snapshot %s: making its directory again", row.info.name)
                    parents = (row.parent_id,) if row.parent_id else ()
                    self._make(row.id, row.info.kind, parents, row.info.labels)
            except (OSError, Error) as error:  # the others must not wait for it
                log.error("snapshot %s: %s", row.info.name, error)

    # One snapshot --------------------------------------------------------------------------

    def _tree(self, id: int) -> str:
        return f"{self._folder}/{id}/fs"

    def _place(self, row: index.Row) -> str | None:
        if row.info.kind != Kind.COMMITTED:
            return self._tree(row.id)
        with contextlib.suppress(Error, OSError):
            return self._image(row.id)
        return f"{self._path(row.id)}/{LAYER}"

    def _count(self, row: index.Row) -> int | None:
        return None  # it is one file, which fs-verity can guard

    def _image(self, id: int) -> str:
        """The image of a committed snapshot. Raises NotFound, OSError."""
        path = f"{self._path(id)}/{LAYER}"
        if not os.path.exists(path):
            with contextlib.suppress(FileNotFoundError):  # somebody else was quicker, or it is gone
                self._publish(id)
            if not os.path.exists(path):
                raise NotFound(f"snapshot {id}: its layer image is gone")
        return path

    def _publish(self, id: int) -> None:
        path = f"{self._path(id)}/{LAYER}"
        os.rename(f"{self._path(id)}/{_NEW}", path)
        image.flush(path)

    def _clear(self, id: int) -> None:
        """What a committed snapshot needs no more."""
        for name in ("fs", "work", _WRITABLE):
            path = Path(self._path(id), name)
            if path.exists():
                remove_tree(path)

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
        parents = index.parent_of_new(connection, key, parent)
        try:
            self._make(id, kind, parents, labels)
        except OSError as error:
            raise disk_error(key, error) from error
        return index.insert(connection, id, kind, key, parents, labels)

    def _make(self, id: int, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]) -> None:
        folder, tree = self._path(id), self._tree(id)
        owner, mode = (os.geteuid(), os.getegid()), _FS_MODE
        if parents:  # the merged root looks like the top layer's: go on with the parent's
            above = image.root_of(self._image(parents[0]))
            owner, mode = (above.uid, above.gid), above.mode
        if idmap.mapped(labels):
            there = idmap.owner(labels, *owner)
            if parents or not self.remaps_ids:  # else the mount maps this folder itself
                owner = there
        for path, wanted in ((folder, 0o700), (tree, _FS_MODE)):
            _mkdir(path, wanted)
        if kind == Kind.ACTIVE:
            _mkdir(f"{folder}/work", _WORK_MODE)
            Path(folder, MARK).touch()
        os.chown(tree, *owner)
        os.chmod(tree, mode)

    async def _remove_tree(self, name: str) -> None:
        async with self._trees.hold(name), self._removals:
            await asyncio.to_thread(self._remove_now, name)

    def _remove_now(self, name: str) -> None:
        folder = self.root / "snapshots" / name
        try:
            self._layers.unmount(name)
            for each in (LAYER, _NEW):
                with contextlib.suppress(FileNotFoundError):
                    image.set_immutable(str(folder / each), False)
        except (OSError, Error) as error:  # then the removal says what stays
            log.debug("snapshot directory %s: %s", folder, error)
        remove_tree(folder)

    # Mounts --------------------------------------------------------------------------------

    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        own = f"{self._path(chain.id)}/{LAYER}"
        if chain.kind == Kind.ACTIVE and not chain.parents and os.path.exists(own):
            return described(Stack(images=[own], kind=Kind.VIEW))  # a differ put it there
        images = [self._image(id) for id in chain.parents]
        if self._settings.verity:
            for path in images:
                if not image.has_verity(path):
                    raise FailedPrecondition(f"fsverity is not enabled on {path}")
        stack = Stack(
            kind=chain.kind,
            images=images,
            upper=self._tree(chain.id),
            work=f"{self._path(chain.id)}/work",
            writable=f"{self._path(chain.id)}/{_WRITABLE}",
            size=self._size(chain.labels) if chain.kind == Kind.ACTIVE else 0,
            options=idmap.options(chain.labels) if self.remaps_ids else [],
            more=self._settings.mount_options,
        )
        if stack.size or not self._settings.mount_layers:
            return described(stack)
        return plain(stack, self._layers.mount(list(zip(chain.parents, images, strict=True))))

    async def _described(self, chain: index.Chain) -> Sequence[Mount]:
        try:
            return await asyncio.to_thread(self._mounts, chain)
        except OSError as error:
            raise disk_error(str(chain.id), error) from error

    def _size(self, labels: Mapping[str, str]) -> int:
        wanted = labels.get(MAX_SIZE_LABEL, "")
        if not self._settings.size or not (wanted.isascii() and wanted.isdecimal()):
            return self._settings.size
        return int(wanted) or self._settings.size

    async def _measure(self, row: index.Row) -> Usage:
        path = f"{self._path(row.id)}/{_WRITABLE}"
        if not self._settings.size or not await asyncio.to_thread(os.path.exists, path):
            return await super()._measure(row)
        return await asyncio.to_thread(_file_usage, path)

    # Commit --------------------------------------------------------------------------------

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        self._check_open()
        await self._owner.shielded(self._commit(name, key, labels, parent), "commit")

    async def _commit(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        """The image, then the row, then the image's name; what it was made of goes last."""
        async with self._keys.hold(key):
            row = self._database.read(partial(index.get, name=key))
            if row.info.kind != Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is not active")
            with contextlib.suppress(NotFound):
                self._database.read(partial(index.get, name=name))
                raise AlreadyExists(f"committed snapshot {name!r}: already exists")
            folder = self._path(row.id)
            given = await asyncio.to_thread(os.path.exists, f"{folder}/{LAYER}")
            made = f"{folder}/{LAYER if given else _NEW}"
            try:
                if not given:
                    await self._convert(row, made, parent)
                usage = await asyncio.to_thread(self._guarded, made)
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
                raise disk_error(key, error) from error
            await asyncio.to_thread(self._settle, row.id)
        self._owner.spawn(asyncio.to_thread(self._clear, row.id), f"clear {row.id}")

    async def _convert(self, row: index.Row, target: str, parent: str) -> None:
        async with self._conversions:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(os.unlink, target)  # of a try that ended here before
            writable = f"{self._path(row.id)}/{_WRITABLE}"
            if await asyncio.to_thread(os.path.exists, writable):
                await self._convert_file(row.id, writable, target)
                return
            if parent and not row.parent_id:
                parents = self._database.read(partial(index.chain_of_parent, parent=parent))
                await asyncio.to_thread(self._inherit, row.id, parents)
            await image.build(self._tree(row.id), target, self._settings.mkfs_options)

    async def _convert_file(self, id: int, writable: str, target: str) -> None:
        """Of what is in ``upper`` of a writable layer that is a file system of its own."""
        place = self._layers.place(id)
        mounts = [Mount("ext4", writable, ("ro", "loop", "noload"))]
        await asyncio.to_thread(_mkdir, place, 0o700)
        await asyncio.to_thread(mount_all, mounts, place)
        try:
            upper = f"{place}/upper"
            there = await asyncio.to_thread(os.path.isdir, upper)
            tree = upper if there else self._tree(id)
            await image.build(tree, target, self._settings.mkfs_options)
        finally:
            await asyncio.to_thread(unmount_all, place)

    def _inherit(self, id: int, parents: Sequence[int]) -> None:
        places = self._layers.mount([(each, self._image(each)) for each in parents])
        inherit(self._tree(id), places)

    def _guarded(self, path: str) -> Usage:
        image.root_of(path)  # what a differ put there may be anything
        if self._settings.verity:
            image.enable_verity(path)
        return _file_usage(path)

    def _settle(self, id: int) -> None:
        path = self._image(id)
        if self._settings.immutable:
            try:
                image.set_immutable(path, True)
            except OSError as error:
                log.warning("could not make %s immutable: %s", path, error)


def _file_usage(path: str) -> Usage:
    return Usage(size=os.lstat(path).st_blocks * _BLOCK, inodes=1)


def _mkdir(path: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)


def _make_root(root: Path, settings: Settings) -> Settings:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(root / "snapshots")
    if settings.verity and not image.supports_verity(str(root)):
        raise FailedPrecondition(f"fsverity is not supported on the filesystem of {str(root)!r}")
    options = tuple(settings.mount_options)
    added = () if settings.size else overlay_options(str(root), options)
    remaps = maps_ids() if settings.remap_ids is None else settings.remap_ids
    return replace(settings, mount_options=(*options, *added), remap_ids=remaps)
