"""What all snapshotters that keep directories share: the index, the life story, and the rules.

A subclass says how a snapshot's directory comes to be (``_make``) and how it is mounted
(``_mounts``). This base keeps the order that makes a crash harmless: the directory before the
row on create, the row before the directory on remove. So a crash leaves directories without a
row, which ``cleanup`` removes, and never a row without its directory. What is committed is on the
disk before its row says so. It never mounts anything.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.checks import Finding, Options, Report
from supervisord.contracts.errors import Error, NotFound, ResourceExhausted, Unavailable, Unknown
from supervisord.contracts.filters import parse
from supervisord.contracts.snapshots import Info, Kind, Mount, Usage
from supervisord.sqlite.database import Database

from . import index
from .check import Folders, check_folders
from .durable import sync_tree
from .trash import remove_tree
from .usage import disk_usage

_CLOSE_GRACE = 10.0
_REMOVALS = 2
_MEASURES = 2


class DirectorySnapshotter(ABC):
    """A snapshotter with one directory per snapshot under ``root/snapshots``.

    ``database`` is open; ``sync_remove`` makes ``remove`` wait until the directory is gone,
    instead of leaving that to the background; without ``sync_commit`` a commit does not wait for
    the disk, and a power failure soon afterwards may leave files without contents."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        sync_remove: bool = False,
        sync_commit: bool = True,
    ) -> None:
        self.root = root
        self._folder = str(root / "snapshots")
        self._database = database
        self._sync_remove = sync_remove
        self._sync_commit = sync_commit
        self._owner = TaskOwner(f"snapshots:{root.name}")
        self._making: set[int] = set()
        self._removals = asyncio.Semaphore(_REMOVALS)
        self._measures = asyncio.Semaphore(_MEASURES)
        self._trees = KeyedLock()
        self._closed = False
        self._last_id = max(database.read(index.last_id), *_numbers(self._folder), 0)

    # How a subclass differs ----------------------------------------------------------------

    @abstractmethod
    def _tree(self, id: int) -> str:
        """The directory whose contents are the snapshot's own."""

    @abstractmethod
    def _mounts(self, chain: index.Chain) -> Sequence[Mount]:
        """How an active or view snapshot is mounted."""

    async def _described(self, chain: index.Chain) -> Sequence[Mount]:
        """The same, for those who must ask the disk for it, in a thread."""
        return self._mounts(chain)

    @abstractmethod
    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> index.Chain:
        """Makes the directory, then the row. Runs shielded from its caller's cancellation."""

    def _shown(self, row: index.Row) -> Info:
        """What clients see of a row."""
        return row.info

    # The contract --------------------------------------------------------------------------

    async def stat(self, key: str) -> Info:
        return self._shown(self._database.read(partial(index.get, name=key)))

    async def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        row = await self._database.write(
            partial(index.update, info=info, fieldpaths=tuple(fieldpaths))
        )
        return self._shown(row)

    async def usage(self, key: str) -> Usage:
        row = self._database.read(partial(index.get, name=key))
        if row.info.kind != Kind.ACTIVE:
            return row.usage
        async with self._measures:  # who polls all of them must not take the whole thread pool
            return await self._measure(row)

    async def mounts(self, key: str) -> Sequence[Mount]:
        return await self._described(self._database.read(partial(index.chain, name=key)))

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        self._check_open()
        work = self._create(Kind.ACTIVE, key, parent, labels)
        return await self._described(await self._owner.shielded(work, "prepare"))

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        self._check_open()
        work = self._create(Kind.VIEW, key, parent, labels)
        return await self._described(await self._owner.shielded(work, "view"))

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        self._check_open()
        row = self._database.read(partial(index.get, name=key))
        usage = Usage()
        if row.info.kind == Kind.ACTIVE:
            usage = await self._measured(row, partial(self._finish, row, parent))
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

    async def remove(self, key: str) -> None:
        self._check_open()
        row = await self._database.write(partial(self._remove_row, key=key), freeing=True)
        removal = self._owner.spawn(self._remove_tree(str(row.id)), f"remove {row.id}")
        if self._sync_remove:
            await asyncio.shield(removal)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        matches = parse(filters)
        after = ""
        while page := self._database.read(partial(index.page, after=after)):
            for row in page:
                info = self._shown(row)
                if matches.match(partial(field, info)):
                    yield info
            after = page[-1].info.name
            await asyncio.sleep(0)

    async def cleanup(self) -> None:
        """Removes every directory that no row, and no prepare under way, stands for."""
        for name in await self._orphans():
            await self._remove_tree(name)

    def databases(self) -> Sequence[Path]:
        """See contracts.checks.Checkable."""
        return [Path(self._database.path)]

    async def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """See contracts.checks.Checkable."""
        name = self.root.name.rpartition(".")[2]
        folders = Folders(name, self._database, self._place, self._count)
        async for report in check_folders(folders, options):
            yield report
        for name in await self._orphans():
            async with self._trees.hold(name):  # perhaps it is only just being removed
                if not await asyncio.to_thread(os.path.lexists, f"{self._folder}/{name}"):
                    continue
            detail = f"no snapshot has {self._folder}/{name}"
            yield Finding("folder", name, "orphan", detail, "", "it is removed", options.repair)
        if options.repair:
            await self.cleanup()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._owner.close(_CLOSE_GRACE)
        await self._database.close()

    # For subclasses ------------------------------------------------------------------------

    def _place(self, row: index.Row) -> str | None:
        """The directory or file that must be there; None where there need not be any."""
        return self._tree(row.id)

    def _count(self, row: index.Row) -> int | None:
        """How many inodes a committed snapshot has; None where that tells nothing. Blocks. Raises
        OSError."""
        return disk_usage(self._tree(row.id)).inodes

    async def _orphans(self) -> list[str]:
        """The names of directories that nothing stands for."""
        names = await asyncio.to_thread(os.listdir, self._folder)
        # In this order: what is being made now either shows here or has its row by then.
        making = set(self._making)
        known = {str(id) for id in self._database.read(index.ids) | making}
        return sorted(set(names) - known)

    def _path(self, id: int) -> str:
        return f"{self._folder}/{id}"

    def _take_id(self) -> int:
        """A fresh id; ``cleanup`` leaves its directory alone until ``_making`` drops it."""
        self._last_id += 1
        self._making.add(self._last_id)
        return self._last_id

    async def _drop(self, id: int) -> None:
        """Undoes a create that failed: its directory goes, unless the row is there after all."""
        if id in self._database.read(index.ids):
            return
        await self._remove_tree(str(id))

    async def _measure(self, row: index.Row) -> Usage:
        """What an active snapshot takes now. Raises NotFound, Unknown."""
        return await self._measured(row, partial(disk_usage, self._tree(row.id)))

    def _finish(self, row: index.Row, parent: str) -> Usage:
        """Makes what is to be committed lasting, and answers what it takes; in a thread.
        ``parent`` is the one that the commit gives it. Raises OSError."""
        del parent
        tree = self._tree(row.id)
        usage = disk_usage(tree)
        if self._sync_commit and usage.inodes > 1:
            sync_tree(tree, usage.inodes, self._folder)
        return usage

    async def _measured(self, row: index.Row, work: Callable[[], Usage]) -> Usage:
        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError:
            raise NotFound(f"snapshot {row.info.name!r}: its directory is gone") from None
        except OSError as error:
            raise disk_error(row.info.name, error) from error

    async def _remove_tree(self, name: str) -> None:
        # One at a time for each tree: a cleanup waits for a removal that has begun already. And a
        # big tree must not take the whole thread pool.
        async with self._trees.hold(name), self._removals:
            await asyncio.to_thread(remove_tree, self.root / "snapshots" / name)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"snapshotter {self.root.name}: closed")

    def _remove_row(self, connection: sqlite3.Connection, key: str) -> index.Row:
        return index.remove(connection, key)


def field(info: Info, path: Sequence[str]) -> tuple[str, bool]:
    """What filters see of a snapshot: ``kind``, ``name``, ``parent``, ``labels.KEY``."""
    match path[0] if path else "":
        case "kind":
            return info.kind.name.lower(), True
        case "name":
            return info.name, True
        case "parent":
            return info.parent, True
        case "labels":
            key = ".".join(path[1:])
            return info.labels.get(key, ""), key in info.labels
    return "", False


def disk_error(name: str, error: OSError) -> Error:
    """What a client is told when the disk refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"snapshot {name!r}: no space left on the disk")
    return Unknown(f"snapshot {name!r}: {error}")


def with_label(info: Info, key: str, value: str) -> Info:
    """The same snapshot with one more label."""
    return replace(info, labels={**info.labels, key: value})


def _numbers(folder: str) -> list[int]:
    return [int(each.name) for each in Path(folder).iterdir() if each.name.isdecimal()]
