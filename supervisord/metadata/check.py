"""The whole check of what is stored, and the backup; implements contracts.checks.Checker.

It goes from below: databases, records, blobs, snapshots, edges. Each part is a module of its own;
here are their order and what they share. Nothing is held up meanwhile: files are read in threads,
rows a page at a time, and what looks wrong is looked at again under the lock of its noun.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from supervisord.contracts.checks import (
    RECOVERED,
    Checkable,
    CopiedDatabase,
    Finding,
    Options,
    Report,
)
from supervisord.contracts.errors import AlreadyExists, Error, Unavailable
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Snapshotter
from supervisord.sqlite.backup import copy
from supervisord.sqlite.faults import ADVICE
from supervisord.sqlite.salvage import faults_of

from .check_blobs import BlobCheck
from .check_edges import check_edges
from .check_records import check_records
from .check_snapshots import SnapshotCheck
from .content import Parts
from .leases import Leases
from .lost import Lost
from .sequences import Sequence as Numbers
from .snapshots import Snapshots


@dataclass(frozen=True, slots=True)
class Recovered:
    """Has what gets a record again held by a lease, so that nothing of it is garbage at once."""

    leases: Leases

    async def hold(self, namespace: str) -> Scope:
        """The scope in which such records are made."""
        with contextlib.suppress(AlreadyExists):
            await self.leases.create(namespace, Lease(RECOVERED))
        return Scope(namespace, RECOVERED)


class StoreCheck:
    """``backends`` are all snapshotters by name, ``stores`` their namespaced form; ``lost`` tells
    of records that are known to be lost."""

    def __init__(
        self,
        parts: Parts,
        leases: Leases,
        stores: Mapping[str, Snapshots],
        backends: Mapping[str, Snapshotter],
        numbers: Numbers,
        lost: Lost,
    ) -> None:
        self._parts = parts
        self._recovered = Recovered(leases)
        self._stores = stores
        self._backends = backends
        self._numbers = numbers
        self._lost = lost
        self._repairing = False

    async def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """See the contract."""
        if options.repair and self._repairing:
            raise Unavailable("another check is repairing: try again when it has ended")
        self._repairing |= options.repair
        failed = False
        try:
            for kind, key, part in self._in_order(options):
                try:
                    async with aclosing(part) as reports:
                        async for report in reports:
                            yield report
                except (Error, OSError, sqlite3.Error) as error:
                    failed = True
                    yield Finding(kind, key, "unreadable", f"could not be checked: {error}")
            if options.repair and not failed:
                await self._lost.found_again()
        finally:
            self._repairing &= not options.repair

    @property
    def _path(self) -> str:
        return self._parts.commits.database.path

    def _in_order(self, options: Options) -> list[tuple[str, str, AsyncGenerator[Report, None]]]:
        """The parts, with what to say of one that cannot be checked."""
        commits = self._parts.commits
        blobs = BlobCheck(self._parts, self._numbers, self._recovered)
        snapshots = {
            name: SnapshotCheck(
                store, self._backends[name], commits, self._numbers, self._recovered
            )
            for name, store in self._stores.items()
        }
        return [
            ("database", self._path, self._databases(options)),
            ("record", self._path, check_records(commits, options)),
            ("blob", str(self._parts.files.root), blobs.check(options)),
            *(("snapshot", name, each.check(options)) for name, each in snapshots.items()),
            ("edge", self._path, check_edges(commits, options)),
        ]

    def _all_databases(self) -> list[Path]:
        paths = [Path(self._path)]
        for backend in self._backends.values():
            if isinstance(backend, Checkable):
                paths += backend.databases()
        return paths

    async def _databases(self, options: Options) -> AsyncGenerator[Report, None]:
        for path in self._all_databases():
            for line in await asyncio.to_thread(faults_of, path, quick=options.quick):
                yield Finding("database", str(path), "damaged", line, remedy=ADVICE)

    async def backup(self, folder: Path) -> Sequence[CopiedDatabase]:
        """See the contract. Records are written after what they stand for and dropped before it, so
        at one moment of the metadata's writer each has its snapshot in the snapshotter's index."""
        metadata, *others = self._all_databases()
        connections = await self._parts.commits.database.pinned(others)
        made = []
        try:
            for number, path in enumerate((metadata, *others)):
                target = folder / f"{number}.db"
                await asyncio.to_thread(copy, connections[number], target)
                made.append(CopiedDatabase(path, target))
        finally:
            for connection in connections:
                connection.close()
        return made
