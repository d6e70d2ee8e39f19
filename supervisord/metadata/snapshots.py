"""Snapshots of one snapshotter with namespaces; implements contracts.snapshots.SnapshotService.

A key ``k`` of namespace ``n`` is ``n/NUMBER/k`` in the backend, with a number that never comes
twice, so that a new snapshot never meets the remains of an old one. A committed snapshot keeps the
number of the active one it was made from: a commit that was cut off by a crash between backend
and row is found again by it, and completed when it is asked for again.

The backend comes first on create and commit, the row first on remove.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace

from protos.containerd.events import events_pb2
from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts import filters as filter_language
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info, Kind, Mount, Snapshotter, Usage

from . import labels as label_rules
from . import references
from . import snapshot_rows as rows
from .commits import Commits, ensure_namespace
from .removals import Removals, note_snapshot
from .rows import readable
from .sequences import Sequence as Numbers
from .snapshot_words import in_client_words

log = logging.getLogger(__name__)

MAX_KEY = 32768
"""Bytes of a key or name."""

_STAT_EACH = 8


class Snapshots:
    """The namespaced form of one backend; see the contract for what each method promises."""

    def __init__(
        self,
        name: str,
        backend: Snapshotter,
        commits: Commits,
        numbers: Numbers,
        removals: Removals,
        owner: TaskOwner,
    ) -> None:
        self.name = name
        self._backend = backend
        self._commits = commits
        self._numbers = numbers
        self._removals = removals
        self._owner = owner
        self._locks = KeyedLock()

    async def stat(self, scope: Scope, key: str) -> Info:
        """Raises NotFound."""
        row = self._row(scope, key)
        with in_client_words({row.backend: key}):
            return row.over(await self._backend.stat(row.backend))

    async def update(self, scope: Scope, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Changes labels. Raises NotFound, InvalidArgument."""
        _check_key(info.name, "info.name")
        async with self._locks.hold((scope.namespace, info.name)):
            row = self._row(scope, info.name)
            thing = f'snapshot "{info.name}"'
            wanted = label_rules.updated(row.labels, info.labels, fieldpaths, thing)
            labels = label_rules.checked(wanted, "info.labels")
            with in_client_words({row.backend: row.key}):
                below = await self._update_backend(row, labels, fieldpaths)

            def change(connection: sqlite3.Connection) -> rows.SnapshotRow:
                current = rows.get(connection, scope.namespace, self.name, info.name)
                changed = replace(current, labels=labels, updated_at=time.time_ns())
                rows.put(connection, scope.namespace, self.name, changed)
                return changed

            return (await self._commits.write(change)).over(below)

    async def usage(self, scope: Scope, key: str) -> Usage:
        """Raises NotFound."""
        row = self._row(scope, key)
        with in_client_words({row.backend: key}):
            return await self._backend.usage(row.backend)

    async def mounts(self, scope: Scope, key: str) -> Sequence[Mount]:
        """Raises NotFound, FailedPrecondition."""
        row = self._row(scope, key)
        with in_client_words({row.backend: key}):
            return await self._backend.mounts(row.backend)

    async def prepare(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]:
        """Publishes /snapshot/prepare. Raises AlreadyExists, NotFound, InvalidArgument."""
        making = self._create(scope, key, parent, labels, Kind.ACTIVE)
        mounts = await self._owner.shielded(making, f"prepare {key}")
        event = events_pb2.SnapshotPrepare(key=key, parent=parent, snapshotter=self.name)
        self._commits.publish(scope.namespace, "/snapshot/prepare", event)
        return mounts

    async def view(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]:
        """Raises AlreadyExists, NotFound, InvalidArgument."""
        making = self._create(scope, key, parent, labels, Kind.VIEW)
        return await self._owner.shielded(making, f"view {key}")

    async def commit(
        self, scope: Scope, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        """Publishes /snapshot/commit. Raises NotFound, AlreadyExists, FailedPrecondition."""
        _check_key(name, "name")
        kept = label_rules.checked(labels, "labels")
        await self._owner.shielded(self._commit(scope, name, key, kept, parent), f"commit {name}")

    async def remove(self, scope: Scope, key: str) -> None:
        """Publishes /snapshot/remove. Raises NotFound, FailedPrecondition."""

        def forget(connection: sqlite3.Connection) -> None:
            backend, _ = rows.backend_of(connection, scope.namespace, self.name, key)
            if rows.has_children(connection, scope.namespace, self.name, key):
                raise FailedPrecondition("cannot remove snapshot with child: failed precondition")
            rows.delete(connection, scope.namespace, self.name, key)
            references.release(connection, scope, self._node(key))
            note_snapshot(connection, self.name, backend)

        async with self._locks.hold((scope.namespace, key)):
            await self._commits.write(forget, deleted=True)
        self._removals.poke()
        event = events_pb2.SnapshotRemove(key=key, snapshotter=self.name)
        self._commits.publish(scope.namespace, "/snapshot/remove", event)

    async def walk(self, scope: Scope, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """All that match, in order of key. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        found = self._commits.read(
            lambda c: list(
                readable(rows.all_raw(c, scope.namespace, self.name), rows.from_raw, "snapshot")
            )
        )
        below = await self._stat_all([row.backend for row in found])
        for row in found:
            info = below.get(row.backend)
            if info is None:
                continue
            info = row.over(info)
            if wanted.always or wanted.match(rows.adaptor(info)):
                yield info

    async def cleanup(self, scope: Scope) -> None:
        """Raises Unimplemented where there is nothing to do."""
        await self._removals.drain()
        await self._backend.cleanup()

    def alone(self, namespace: str, key: str) -> AbstractAsyncContextManager[None]:
        """Inside it nobody else makes, commits or removes the snapshot: for checks."""
        return self._locks.hold((namespace, key))

    # Parts -----------------------------------------------------------------------------------

    def _node(self, key: str) -> references.Node:
        return references.Node(references.snapshots(self.name), key)

    def _row(self, scope: Scope, key: str) -> rows.SnapshotRow:
        return self._commits.read(lambda c: rows.get(c, scope.namespace, self.name, key))

    def _find(self, scope: Scope, key: str) -> rows.SnapshotRow | None:
        return self._commits.read(lambda c: rows.find(c, scope.namespace, self.name, key))

    async def _stat_all(self, backends: Sequence[str]) -> dict[str, Info]:
        """What the backend knows of these, by its keys; it may know less."""
        if len(backends) > _STAT_EACH:
            return {info.name: info async for info in self._backend.walk()}
        below: dict[str, Info] = {}
        for backend in backends:
            try:
                below[backend] = await self._backend.stat(backend)
            except NotFound:
                log.warning("%s: the backend has no snapshot %r", self.name, backend)
        return below

    async def _update_backend(
        self, row: rows.SnapshotRow, labels: Mapping[str, str], fieldpaths: Sequence[str]
    ) -> Info:
        """Passes on the labels that are the backend's business too."""
        passed = [
            path
            for path in fieldpaths
            if path == "labels" or rows.inherited(path.removeprefix(label_rules.LABELS))
        ]
        if fieldpaths and not passed:
            return await self._backend.stat(row.backend)
        wanted = Info(row.backend, labels=rows.inherited_labels(labels))
        return await self._backend.update(wanted, passed)

    async def _refuse_taken(self, scope: Scope, key: str, noun: str) -> None:
        """Raises AlreadyExists if the key is taken; the lease then holds what is there."""

        def hold(connection: sqlite3.Connection) -> bool:
            """It may have been collected since it was seen."""
            if rows.find(connection, scope.namespace, self.name, key) is None:
                return False
            references.hold(connection, scope, self._node(key))
            return True

        if self._find(scope, key) is None or (scope.lease and not await self._commits.write(hold)):
            return
        raise AlreadyExists(f'{noun} "{key}": already exists')

    async def _create(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str], kind: Kind
    ) -> Sequence[Mount]:
        _check_key(key, "key")
        kept = label_rules.checked(labels, "labels")
        target = kept.get(rows.SNAPSHOT_REF, "")
        async with self._locks.hold((scope.namespace, key)):
            if target:
                await self._refuse_taken(scope, target, "target snapshot")
            await self._refuse_taken(scope, key, "snapshot")
            below = ""
            if parent:
                found = self._find(scope, parent)
                if found is None:
                    raise NotFound(f"parent snapshot {parent} does not exist: not found")
                below = found.backend
            backend = f"{scope.namespace}/{await self._numbers.next()}/{key}"
            make = self._backend.view if kind is Kind.VIEW else self._backend.prepare
            try:
                with in_client_words({backend: key, below: parent}):
                    mounts = await make(backend, below, rows.inherited_labels(kept))
            except AlreadyExists as error:
                if not target:
                    raise Unknown(f"unexpected error from snapshotter: {error}") from error
                await self._adopt(scope, target, parent, below, kept)
                await self._undo(backend)  # some keep what they had begun to make
                raise AlreadyExists(
                    f'target snapshot "{target}" from snapshotter: already exists'
                ) from error
            except DeadlineExceeded:  # it may still be made, so that it has to go later
                await self._commits.write(lambda c: note_snapshot(c, self.name, backend))
                self._removals.poke()
                raise
            except Unavailable:  # it may have been made before the connection broke
                await self._undo(backend)
                raise
            now = time.time_ns()
            row = rows.SnapshotRow(key, backend, parent, kept, now, now)
            try:
                await self._commits.write(lambda c: self._insert(c, scope, row, below))
            except BaseException:
                await self._undo(backend)
                raise
            return mounts

    async def _adopt(
        self, scope: Scope, target: str, parent: str, below: str, labels: Mapping[str, str]
    ) -> None:
        """A remote snapshotter has found the snapshot that ``target`` names: it becomes a row.

        Raises NotFound if the backend does not have it after all."""
        found: Info | None = None
        wanted = (
            f'labels."{rows.SNAPSHOT_REF}"=={filter_language.quoted(target)}'
            f",parent=={filter_language.quoted(below)}"
        )
        async for info in self._backend.walk([wanted]):  # which may not know filters
            if (
                found is None
                and info.kind is Kind.COMMITTED
                and info.labels.get(rows.SNAPSHOT_REF) == target
                and info.parent == below
            ):
                found = info
        if found is None:
            raise NotFound(f'target snapshot "{target}" in backend: not found')
        row = rows.SnapshotRow(
            target,
            found.name,
            parent,
            {**found.labels, **labels},
            found.created_at,
            found.updated_at,
        )
        async with self._removals.held(self.name, found.name):  # another namespace may drop it
            await self._backend.stat(found.name)
            await self._commits.write(lambda c: self._insert(c, scope, row, below, adopt=True))

    def _insert(
        self,
        connection: sqlite3.Connection,
        scope: Scope,
        row: rows.SnapshotRow,
        below: str,
        *,
        adopt: bool = False,
    ) -> None:
        ensure_namespace(connection, scope.namespace)
        if row.parent:
            parent = rows.find(connection, scope.namespace, self.name, row.parent)
            if parent is None:
                raise NotFound(f"parent snapshot {row.parent} does not exist: not found")
            if parent.backend != below:
                raise InvalidArgument(f"parent: {row.parent} was replaced meanwhile")
        references.hold(connection, scope, self._node(row.key))
        if rows.find(connection, scope.namespace, self.name, row.key) is not None:
            if adopt:
                return
            raise AlreadyExists(f'snapshot "{row.key}": already exists')
        rows.put(connection, scope.namespace, self.name, row)

    async def _undo(self, backend: str) -> None:
        """Removes what has no row. If that fails too, recovery finds it at the next start."""
        try:
            await self._backend.remove(backend)
        except NotFound:
            log.debug("%s: nothing of %r to clean up", self.name, backend)
        except (Error, OSError) as error:
            log.error("%s: could not clean up %r: %s", self.name, backend, error)

    async def _commit(
        self, scope: Scope, name: str, key: str, labels: Mapping[str, str], parent: str
    ) -> None:
        namespace = scope.namespace
        async with AsyncExitStack() as stack:
            for held in sorted({key, name}):
                await stack.enter_async_context(self._locks.hold((namespace, held)))
            await self._refuse_taken(scope, name, "snapshot")
            # Before the backend: it cannot undo a commit.
            self._commits.read(lambda c: references.require_lease(c, scope))
            row = self._row(scope, key)
            backend = rows.committed_key(row.backend, namespace, name)
            rebase = parent if parent and not row.parent else ""
            below = ""
            if rebase:
                found = self._find(scope, rebase)
                if found is None:
                    raise NotFound(f"parent snapshot {rebase} does not exist: not found")
                below = found.backend
            with in_client_words({backend: name, row.backend: key, below: rebase}):
                await self._commit_backend(backend, row.backend, labels, below)
            now = time.time_ns()
            made = rows.SnapshotRow(name, backend, row.parent or rebase, labels, now, now)

            def record(connection: sqlite3.Connection) -> None:
                rows.get(connection, namespace, self.name, key)
                self._insert(connection, scope, made, below or self._below(connection, scope, made))
                rows.delete(connection, namespace, self.name, key)
                references.release(connection, scope, self._node(key))

            try:
                await self._commits.write(record)
            except NotFound:
                # Collected meanwhile, so that nobody has it; while the active snapshot is still
                # known, another try would complete the commit.
                if self._find(scope, key) is None:
                    await self._undo(backend)
                raise
        event = events_pb2.SnapshotCommit(key=key, name=name, snapshotter=self.name)
        self._commits.publish(namespace, "/snapshot/commit", event)

    def _below(self, connection: sqlite3.Connection, scope: Scope, row: rows.SnapshotRow) -> str:
        parent = rows.find(connection, scope.namespace, self.name, row.parent)
        return parent.backend if parent is not None else ""

    async def _commit_backend(
        self, name: str, key: str, labels: Mapping[str, str], parent: str
    ) -> None:
        passed = rows.inherited_labels(labels)
        try:
            if parent:
                await self._backend.commit(name, key, passed, parent)
            else:
                await self._backend.commit(name, key, passed)
        except (NotFound, AlreadyExists):
            # An earlier try may have come so far and no further.
            try:
                done = await self._backend.stat(name)
            except NotFound:
                done = None
            if done is None or done.kind is not Kind.COMMITTED:
                raise


def _check_key(value: str, field: str) -> None:
    if not value or "\0" in value or len(value.encode()) > MAX_KEY:
        raise InvalidArgument(f"{field}: must have 1 to {MAX_KEY} bytes and no zero byte")
