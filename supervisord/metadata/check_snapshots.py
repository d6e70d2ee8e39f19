"""Checks the snapshots of one snapshotter: what it checks itself, then our rows against it.

A row whose snapshot is gone is dropped, children first, so that the layer can be unpacked again. A
snapshot without a row gets one, by what its key in the snapshotter says, under the lease
``recovered`` of its namespace.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from supervisord.contracts.checks import Checkable, Finding, Options, Progress, Report
from supervisord.contracts.errors import NotFound
from supervisord.contracts.snapshots import Info, Kind, Snapshotter

from . import references
from . import snapshot_rows as rows
from .commits import Commits
from .removals import noted
from .sequences import Sequence as Numbers
from .snapshots import Snapshots

if TYPE_CHECKING:
    from .check import Recovered

_AGAIN = "its record is dropped: it can be made again"

_Rows = dict[str, tuple[str, str, str]]


class SnapshotCheck:
    """``store`` is the namespaced form of ``backend``."""

    def __init__(
        self,
        store: Snapshots,
        backend: Snapshotter,
        commits: Commits,
        numbers: Numbers,
        recovered: Recovered,
    ) -> None:
        self._store = store
        self._name = store.name
        self._backend = backend
        self._commits = commits
        self._numbers = numbers
        self._recovered = recovered

    async def check(self, options: Options) -> AsyncGenerator[Report, None]:
        """The snapshotter itself first: what it drops has lost its row after that."""
        if isinstance(self._backend, Checkable):
            async for report in self._backend.check(options):
                yield self._in_our_words(report)
        known = self._rows()
        present = {info.name: info async for info in self._backend.walk()}
        part = f"snapshots of {self._name}"
        yield Progress(part, 0, len(known))
        # Children first: a parent's row may go only when no child's is left.
        for done, backend in enumerate(_children_first(known)):
            namespace, key, parent = known[backend]
            async with self._store.alone(namespace, key):
                finding = await self._judged(namespace, key, backend, present, options)
            if finding is not None:
                yield finding
            elif parent and (info := present.get(backend)) is not None:
                wrong = await self._wrong_parent(namespace, key, parent, info, known, options)
                if wrong is not None:
                    yield wrong
            if done % 64 == 63:
                yield Progress(part, done + 1, len(known))
        async for orphan in self._orphans(self._rows(), present, options):
            yield orphan
        yield Progress(part, len(known), len(known))

    def _in_our_words(self, report: Report) -> Report:
        if isinstance(report, Progress):
            return report
        namespace, _, rest = report.key.partition("/")
        number, _, key = rest.partition("/")
        if not number.isdecimal() or not key:
            return report
        detail = f"{self._name}: {report.detail}"
        return Finding(
            report.kind, key, report.problem, detail, namespace, report.remedy, report.repaired
        )

    def _rows(self) -> _Rows:
        """Namespace, key and parent by the key in the snapshotter."""
        found = self._commits.read(
            lambda c: c.execute(
                "SELECT backend, namespace, key, parent FROM snapshots WHERE snapshotter = ?",
                (self._name,),
            ).fetchall()
        )
        return {backend: (namespace, key, parent) for backend, namespace, key, parent in found}

    async def _judged(
        self, namespace: str, key: str, backend: str, present: dict[str, Info], options: Options
    ) -> Finding | None:
        """A row whose snapshot may be gone; its key is locked."""
        row = self._commits.read(lambda c: rows.find(c, namespace, self._name, key))
        if backend in present or row is None or row.backend != backend:
            return None
        try:
            await self._backend.stat(backend)
        except NotFound:
            pass
        else:
            return None
        number = rows.number(backend)
        for info in present.values():
            if info.kind is Kind.COMMITTED and rows.number(info.name) == number is not None:
                remedy = "committing it again completes it"
                detail = f"{self._name}: its commit was cut off"
                return Finding("snapshot", key, "unfinished", detail, namespace, remedy)
        detail = f"{self._name}: the snapshotter does not have it"
        repaired = options.repair and await self._dropped(namespace, key)
        return Finding("snapshot", key, "missing", detail, namespace, _AGAIN, repaired)

    async def _dropped(self, namespace: str, key: str) -> bool:
        """False where children are left, which need it."""

        def drop(connection: sqlite3.Connection) -> bool:
            if rows.has_children(connection, namespace, self._name, key):
                return False
            rows.delete(connection, namespace, self._name, key)
            return True

        return await self._commits.write(drop, deleted=True)

    async def _wrong_parent(
        self,
        namespace: str,
        key: str,
        parent: str,
        info: Info,
        known: _Rows,
        options: Options,
    ) -> Finding | None:
        """The row says another parent than the snapshotter, which is right: it mounts."""
        actual = known.get(info.parent)
        if actual is not None and actual[:2] == (namespace, parent):
            return None
        if info.parent and actual is None:
            return None  # the parent is an orphan: it gets its row first
        name = actual[1] if actual is not None else ""
        if options.repair:
            await self._commits.write(
                partial(
                    _reparent, namespace=namespace, snapshotter=self._name, key=key, parent=name
                )
            )
        detail = f"{self._name}: its parent is {name or 'none'}, not {parent}"
        remedy = "the record is corrected"
        return Finding("snapshot", key, "parent", detail, namespace, remedy, options.repair)

    # Orphans -------------------------------------------------------------------------------

    async def _orphans(
        self, known: _Rows, present: dict[str, Info], options: Options
    ) -> AsyncGenerator[Report, None]:
        unfinished = {rows.number(backend) for backend in known if backend not in present}
        for info in _parents_first(present):
            number = rows.number(info.name)
            if info.name in known or number is None or number >= self._numbers.first:
                continue  # not of our making, or being made
            if info.kind is Kind.COMMITTED and number in unfinished:
                continue
            going = partial(noted, kind=references.snapshots(self._name), key=info.name)
            if self._commits.read(going):
                continue
            namespace, _, key = info.name.split("/", 2)
            repaired = options.repair and await self._adopted(namespace, key, info, present)
            detail = f"{self._name}: has no record"
            remedy = "it gets one, held by the lease recovered of its namespace"
            yield Finding("snapshot", key, "orphan", detail, namespace, remedy, repaired)

    async def _adopted(
        self, namespace: str, key: str, info: Info, present: dict[str, Info]
    ) -> bool:
        """False where its name or its parent cannot be had."""
        if info.parent and rows.number(info.parent) is None:
            return False
        parent = info.parent.split("/", 2)[2] if info.parent else ""
        now = time.time_ns()
        row = rows.SnapshotRow(
            key, info.name, parent, info.labels, info.created_at or now, info.updated_at or now
        )
        scope = await self._recovered.hold(namespace)
        node = references.Node(references.snapshots(self._name), key)

        def adopt(connection: sqlite3.Connection) -> bool:
            above = rows.find(connection, namespace, self._name, parent) if parent else None
            if parent and (above is None or above.backend != info.parent):
                return False
            if rows.find(connection, namespace, self._name, key) is not None:
                return False
            rows.put(connection, namespace, self._name, row)
            references.hold(connection, scope, node)
            return True

        async with self._store.alone(namespace, key):
            return await self._commits.write(adopt)


def _reparent(
    connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str, parent: str
) -> None:
    row = rows.find(connection, namespace, snapshotter, key)
    if row is not None:
        changed = rows.SnapshotRow(
            row.key, row.backend, parent, row.labels, row.created_at, row.updated_at
        )
        rows.put(connection, namespace, snapshotter, changed)


def _children_first(known: _Rows) -> list[str]:
    """Keys in the snapshotter, each before its parent's."""
    by_name = {(namespace, key): backend for backend, (namespace, key, _) in known.items()}

    def depth(backend: str) -> int:
        seen = set()
        while backend not in seen:
            seen.add(backend)
            namespace, _, parent = known[backend]
            above = by_name.get((namespace, parent)) if parent else None
            if above is None:
                break
            backend = above
        return len(seen)

    return sorted(known, key=depth, reverse=True)


def _parents_first(present: dict[str, Info]) -> list[Info]:
    done: dict[str, Info] = {}

    def visit(info: Info) -> None:
        waiting = [info]
        while waiting:
            top = waiting[-1]
            above = present.get(top.parent)
            if above is not None and above.name not in done and above not in waiting:
                waiting.append(above)
            else:
                done[waiting.pop().name] = top

    for info in present.values():
        if info.name not in done:
            visit(info)
    return list(done.values())
