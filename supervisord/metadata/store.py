"""All stores over one metadata database, opened, wired and closed together.

Called by the daemon's boot alone. ``attach`` the collector before the first request; ``recover``
runs in the background afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.content.blobs import BlobFiles
from supervisord.contracts.events import Publisher
from supervisord.contracts.leases import Collector
from supervisord.contracts.snapshots import Snapshotter, is_remote
from supervisord.linux.durable import make_folder
from supervisord.sqlite.database import Database

from . import snapshot_rows
from .commits import Commits
from .containers import Containers
from .content import Content, Parts
from .garbage import Garbage
from .images import Images
from .inspection import Inspection
from .leases import Leases
from .lost import Lost
from .namespaces import Namespaces
from .recovery import recover_all, recover_remote
from .removals import Removals
from .sandboxes import Sandboxes
from .schema import MIGRATIONS
from .sequences import Sequence
from .snapshots import Snapshots

if TYPE_CHECKING:
    from .check import StoreCheck

_CONTENT_THREADS = 8
_GRACE = 10.0
_SELDOM = 300.0


@dataclass(frozen=True, slots=True)
class Metadata:
    """The stores, by noun. ``garbage`` is what a collector sweeps, ``inspection`` looks at it."""

    database: Database
    namespaces: Namespaces
    containers: Containers
    sandboxes: Sandboxes
    images: Images
    leases: Leases
    content: Content
    snapshots: Mapping[str, Snapshots]
    garbage: Garbage
    _lost: Lost
    inspection: Inspection
    _parts: Parts
    _numbers: Sequence
    _backends: Mapping[str, Snapshotter]
    _checking: Callable[[], StoreCheck]

    @classmethod
    async def open(
        cls,
        root: Path,
        *,
        snapshotters: Mapping[str, Snapshotter],
        content_path: Path,
        publisher: Publisher | None = None,
        policy: Literal["shared", "isolated"] = "shared",
    ) -> Metadata:
        """Opens or makes ``root/metadata.db`` and the content folder.

        Raises sqlite.migrations.NewerDatabase, DataLoss, OSError, sqlite3.OperationalError."""
        await asyncio.to_thread(make_folder, root)
        lost = Lost(root)
        is_new = not (root / "metadata.db").exists()
        database = await Database.open(root / "metadata.db", MIGRATIONS)
        try:
            files = BlobFiles(content_path)
            used = await _highest_number(snapshotters, files) if is_new or lost.known() else 0
            if is_new and (used or files.has_blobs()):
                lost.note("the metadata is new, but there are blobs or snapshots")
            if (is_new or lost.known()) and any(map(is_remote, snapshotters.values())):
                used = max(used, int(time.time()))  # no daemon counts that fast
            numbers = await Sequence.open(database, "backend", above=used)
        except BaseException:
            await database.close()
            raise
        owner = TaskOwner("metadata")
        locks = KeyedLock()
        removals = Removals(database, files, locks, snapshotters, owner)
        commits = Commits(database, publisher)
        executor = ThreadPoolExecutor(_CONTENT_THREADS, "content")
        parts = Parts(commits, files, removals, locks, executor, owner)
        content = Content(parts, numbers, isolated=policy == "isolated")
        leases = Leases(commits)
        garbage = Garbage(commits, removals, content.open_ingests)
        stores = {
            name: Snapshots(name, backend, commits, numbers, removals, owner)
            for name, backend in snapshotters.items()
        }

        def check() -> StoreCheck:
            from .check import StoreCheck

            return StoreCheck(parts, leases, stores, snapshotters, numbers, lost)

        return cls(
            database=database,
            namespaces=Namespaces(commits),
            containers=Containers(commits),
            sandboxes=Sandboxes(commits),
            images=Images(commits),
            leases=leases,
            content=content,
            snapshots=stores,
            _lost=lost,
            garbage=garbage,
            inspection=Inspection(database, garbage, files, stores),
            _parts=parts,
            _numbers=numbers,
            _backends=dict(snapshotters),
            _checking=cache(check),
        )

    @property
    def checker(self) -> StoreCheck:
        """The check of all that is stored; loaded only where one is wanted."""
        return self._checking()

    def attach(self, collector: Collector) -> None:
        """Has the collector told of every commit, and used for synchronous deletes."""
        self._parts.commits.collector = collector

    async def recover(self) -> None:
        """Removes what a crash has left. Run it once, in the background, after the start. Where
        records are known to be lost, what has none is left alone."""
        if self._lost.known():
            self._lost.complain()
            await self._parts.removals.drain(cleanup=True)
            return
        await recover_all(
            self.database,
            self._parts.files,
            self._parts.removals,
            self._numbers,
            self._backends,
        )
        await self._recover_remote(
            {name: each for name, each in self._backends.items() if is_remote(each)}, 1.0
        )

    async def _recover_remote(self, backends: Mapping[str, Snapshotter], seconds: float) -> None:
        """Again and again, ever more seldom, until all have been asked."""
        left = await recover_remote(self.database, self._numbers, backends)
        if left:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, self._recover_later, left, min(2 * seconds, _SELDOM))

    def _recover_later(self, backends: Mapping[str, Snapshotter], seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon stops
            self._parts.owner.spawn(self._recover_remote(backends, seconds), "recovery of proxies")

    async def close(self) -> None:
        """Lets what is on its way end, then closes the database. The snapshotters are closed by
        who made them."""
        await self._parts.owner.close(_GRACE)
        await self.database.close()
        self._parts.executor.shutdown(wait=True)


async def _highest_number(snapshotters: Mapping[str, Snapshotter], files: BlobFiles) -> int:
    """The highest that was ever given to a snapshot or an ingest which is still there; 0 for
    none. Those in other processes are not asked, because they may be away."""
    highest = max(files.all_ingests(), default=0)
    for backend in snapshotters.values():
        if is_remote(backend):
            continue
        async for info in backend.walk():
            highest = max(highest, snapshot_rows.number(info.name) or 0)
    return highest
