"""Removes from the disk what no row needs any more.

A transaction that drops the last row of a blob, an ingest or a snapshot writes a removal in the
same breath (``note_*``). ``drain`` carries the removals out, and forgets them when that is done; a
crash in between leaves them for the next start. What the backend refuses for now (a snapshot whose
children are still there) is tried again after the others, and at the next drain.

Each snapshotter has a lane of its own, and the files of content another: one that hangs holds up
only itself. For one in another process a drain waits ``PATIENCE`` seconds and no longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.content.blobs import BlobFiles
from supervisord.contracts.errors import (
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
)
from supervisord.contracts.snapshots import Snapshotter, is_remote
from supervisord.sqlite.database import Database

from . import references, snapshot_rows

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for which a drain waits for what is removed in another process."""

_BREATH_SECONDS = 0.02
"""How long removals are collected. Whoever removes one thing has more to ask, as a rule at once."""
_LATEST = 300.0  # seconds after which a snapshotter that was away is tried again
_BATCH = 256
_HERE = ""  # the lane of blobs and ingests
_SNAPSHOTS = references.snapshots("")
_FILES_AT_ONCE = 32
_SNAPSHOTS_AT_ONCE = 8
_FILES = (references.CONTENT, references.INGESTS)
_NEEDED = (
    "SELECT 1 FROM blobs WHERE digest = :digest"
    " UNION ALL SELECT 1 FROM ingests WHERE expected = :digest LIMIT 1"
)
_NOTE = "INSERT INTO removals (kind, key) VALUES (?, ?)"

_Removal = tuple[int, str, str]
_Unreachable = (Unavailable, DeadlineExceeded)


def note_blob(connection: sqlite3.Connection, digest: str) -> None:
    """To be called after a row of the blob was deleted, in any namespace."""
    if connection.execute(_NEEDED, {"digest": digest}).fetchone() is None:
        connection.execute(_NOTE, (references.CONTENT, digest))


def note_ingest(connection: sqlite3.Connection, number: int) -> None:
    """To be called when the row of an ingest is deleted."""
    connection.execute(_NOTE, (references.INGESTS, str(number)))


def note_snapshot(connection: sqlite3.Connection, snapshotter: str, backend: str) -> None:
    """To be called when the row of a snapshot is deleted, children first."""
    connection.execute(_NOTE, (references.snapshots(snapshotter), backend))


def _put_off(kind: str, key: str, error: Exception) -> None:
    log.warning("could not remove %s %r, trying again later: %s", kind, key, error)


def noted(connection: sqlite3.Connection, kind: str, key: str) -> bool:
    """Whether the removal of a thing is on its way: a check need not tell of it."""
    query = "SELECT 1 FROM removals WHERE kind = ? AND key = ?"
    return connection.execute(query, (kind, key)).fetchone() is not None


class Removals:
    """``blob_locks`` are held by digest, also by whoever makes a blob appear."""

    def __init__(
        self,
        database: Database,
        files: BlobFiles,
        blob_locks: KeyedLock,
        snapshotters: Mapping[str, Snapshotter],
        owner: TaskOwner,
    ) -> None:
        self._database = database
        self._files = files
        self._blob_locks = blob_locks
        self._snapshotters = snapshotters
        self._owner = owner
        self._lanes = KeyedLock()
        self._backends = KeyedLock()
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._to_clean: set[str] = set()
        self._delays: dict[str, float] = {}
        self._again = False

    def poke(self) -> None:
        """Has what was noted carried out soon, in the background."""
        if self._again:
            return
        self._again = True
        self._owner.spawn(self._in_background(), "removals")

    async def drain(self, *, cleanup: bool = False) -> None:
        """Carries out all that was noted before the call. With ``cleanup`` the snapshotters that
        were concerned also free what their removes left behind.

        Raises Unavailable once the daemon stops."""
        self._again = False
        kinds = self._database.read(
            lambda c: {kind for (kind,) in c.execute("SELECT DISTINCT kind FROM removals")}
        )
        lanes = {_HERE if kind in _FILES else kind for kind in kinds}
        if cleanup:
            self._to_clean |= lanes
        here = {self._lane(lane) for lane in lanes if not self._is_far(lane)}
        far = {self._lane(lane) for lane in lanes if self._is_far(lane)}
        if far:
            far, late = await asyncio.wait(far, timeout=PATIENCE)
            if late:
                log.warning("%d snapshotters in other processes are slow to remove", len(late))
        if here:
            await asyncio.wait(here)
        for lane in here | far:
            lane.result()

    def _is_far(self, lane: str) -> bool:
        return is_remote(self._snapshotters.get(lane.removeprefix(_SNAPSHOTS)))

    def _lane(self, lane: str) -> asyncio.Task[None]:
        """The next run of a lane: one that has not begun serves all who ask until it does."""
        waiting = self._waiting.get(lane)
        if waiting is None:
            try:
                waiting = self._owner.spawn(self._run(lane), f"removals of {lane or 'files'}")
            except RuntimeError as error:
                raise Unavailable(str(error)) from error
            self._waiting[lane] = waiting
        return waiting

    async def _run(self, lane: str) -> None:
        async with self._lanes.hold(lane):
            del self._waiting[lane]
            try:
                await self._remove_all(lane)
            except _Unreachable as error:
                seconds = self._delays[lane] = min(2 * self._delays.get(lane, 1.0), _LATEST)
                log.warning("removals of %s wait for %g s: %s", lane, seconds, error)
                asyncio.get_running_loop().call_later(seconds, self._try_again, lane)
            else:
                self._delays.pop(lane, None)

    def _try_again(self, lane: str) -> None:
        with contextlib.suppress(Unavailable):  # the daemon stops
            self._lane(lane)

    async def _remove_all(self, lane: str) -> None:
        last = 0
        postponed: list[_Removal] = []
        while batch := self._after(lane, last):
            last = batch[-1][0]
            postponed += await self._carry_out(batch)
        while postponed:
            left = await self._carry_out(postponed)
            if len(left) == len(postponed):
                log.warning("%d removals are put off, %r first", len(left), left[0][2])
                break
            postponed = left
        if lane in self._to_clean:
            self._to_clean.discard(lane)
            await self._clean(lane)

    async def _in_background(self) -> None:
        try:
            await asyncio.sleep(_BREATH_SECONDS)
            await self.drain()
        except Unavailable:
            log.debug("removals wait for the next start: the database is closed")
        except Exception as error:
            log.error("removals are put off: %s", error, exc_info=error)

    def _after(self, lane: str, last: int) -> list[_Removal]:
        kinds = (lane, lane) if lane else _FILES
        return self._database.read(
            lambda c: c.execute(
                "SELECT id, kind, key FROM removals WHERE id > ? AND kind IN (?, ?)"
                " ORDER BY id LIMIT ?",
                (last, *kinds, _BATCH),
            ).fetchall()
        )

    async def _carry_out(self, removals: Sequence[_Removal]) -> list[_Removal]:
        """Answers what has to wait. Files go many at a time; snapshots are begun in order, so
        that a backend which keeps that order never sees a parent before its child.

        Raises one of _Unreachable: then the rest was not even tried."""
        done: list[tuple[int]] = []
        postponed: list[_Removal] = []
        unreachable: list[Error] = []
        at_once = asyncio.Semaphore(_SNAPSHOTS_AT_ONCE)

        async def snapshot(removal: _Removal) -> None:
            number, kind, key = removal
            async with at_once:
                if unreachable:
                    return
                try:
                    await self._remove_snapshot(kind, key)
                    done.append((number,))
                except FailedPrecondition:
                    postponed.append(removal)
                except _Unreachable as error:
                    unreachable.append(error)
                except (Error, OSError) as error:
                    _put_off(kind, key, error)

        files = [removal for removal in removals if removal[1] in _FILES]
        snapshots = [removal for removal in removals if removal[1] not in _FILES]
        for start in range(0, len(files), _FILES_AT_ONCE):
            done += await self._remove_files(files[start : start + _FILES_AT_ONCE])
        await asyncio.gather(*map(snapshot, snapshots))
        if done:
            await self._database.write(
                lambda c: c.executemany("DELETE FROM removals WHERE id = ?", done), freeing=True
            )
        if unreachable:
            raise unreachable[0]
        return sorted(postponed)

    async def _remove_files(self, removals: Sequence[_Removal]) -> list[tuple[int]]:
        """Answers the numbers of what is gone."""
        # A blob that came back and went again is noted twice, and its lock can be held but once.
        digests = {key for _, kind, key in removals if kind == references.CONTENT}
        async with AsyncExitStack() as stack:
            for digest in sorted(digests):
                await stack.enter_async_context(self._blob_locks.hold(digest))
            return await asyncio.to_thread(self._unlink, removals)

    def _unlink(self, removals: Sequence[_Removal]) -> list[tuple[int]]:
        done: list[tuple[int]] = []
        for number, kind, key in removals:
            try:
                if kind == references.INGESTS:
                    self._files.remove_ingest(int(key))
                elif not self._is_needed(key):
                    self._files.remove_blob(key)
                done.append((number,))
            except OSError as error:
                _put_off(kind, key, error)
        return done

    def _is_needed(self, digest: str) -> bool:
        row = self._database.read(lambda c: c.execute(_NEEDED, {"digest": digest}).fetchone())
        return row is not None

    async def _remove_snapshot(self, kind: str, key: str) -> None:
        snapshotter = self._snapshotters.get(kind.removeprefix(_SNAPSHOTS))
        if snapshotter is None:
            return  # it is not configured any more; its own recovery finds the orphan
        name = kind.removeprefix(_SNAPSHOTS)
        async with self.held(name, key):
            if self._database.read(lambda c: snapshot_rows.is_named(c, name, key)):
                return  # another namespace has adopted it
            try:
                await snapshotter.remove(key)
            except NotFound:
                log.debug("%s %r was gone already", kind, key)

    def held(self, snapshotter: str, backend: str) -> AbstractAsyncContextManager[None]:
        """A snapshot is not removed from its backend meanwhile: hold it to give it a row more."""
        return self._backends.hold((snapshotter, backend))

    async def remove_blob(self, digest: str) -> None:
        """Removes the file of a blob unless some row needs it (again)."""
        async with self._blob_locks.hold(digest):
            if not self._is_needed(digest):
                await asyncio.to_thread(self._files.remove_blob, digest)

    async def _clean(self, lane: str) -> None:
        snapshotter = self._snapshotters.get(lane.removeprefix(_SNAPSHOTS))
        if snapshotter is None:
            return
        try:
            await snapshotter.cleanup()
        except Unimplemented:
            return
        except (Error, OSError) as error:
            log.warning("%s: cleanup failed: %s", lane, error)
