"""One SQLite database: a writer thread with group commit, and read-only connections.

All writes are short synchronous closures. The writer takes whatever is waiting, runs each in a
savepoint of one transaction, commits once (``synchronous=FULL``), and answers all: closures that
arrive while a commit is being synced share the next one. A closure that raises undoes only its
own savepoint.

A cancelled waiter means "perhaps committed": the closure runs all the same.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from supervisord.contracts.errors import ResourceExhausted, Unavailable

from .migrations import Migration, migrate

T = TypeVar("T")

_BATCH = 256
_BUSY_MS = 5000

_Job = tuple[Callable[[sqlite3.Connection], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


def _connect(path: str, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{path}" + ("?mode=ro" if read_only else ""),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    else:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


class Database:
    """An open database. Make it with ``open``; end it with ``close``."""

    def __init__(self, path: str | Path, migrations: Sequence[Migration]) -> None:
        self.path = str(path)
        self._writer_connection = _connect(self.path, read_only=False)
        migrate(self._writer_connection, migrations)
        self._readers = threading.local()
        self._all_readers: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(
            target=self._serve, name=f"sqlite-writer:{Path(self.path).name}", daemon=True
        )
        self._thread.start()

    @classmethod
    async def open(cls, path: str | Path, migrations: Sequence[Migration]) -> Database:
        """Opens or makes the database and takes the migrations that are missing.

        Raises migrations.NewerDatabase, sqlite3.DatabaseError for a file that is none."""
        return await asyncio.to_thread(cls, path, migrations)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` in the writer thread and returns its result once it is on disk.

        Raises whatever ``work`` raises (its changes undone), ResourceExhausted on a full disk,
        Unavailable once closed."""
        if self._closed:
            raise Unavailable("the metadata database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, loop, future))
        return await future

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` on this thread's read-only connection. It sees all that was committed,
        and never waits for the writer. Keep it short on the event loop."""
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = _connect(self.path, read_only=True)
            self._readers.connection = connection
            with self._guard:
                self._all_readers.append(connection)
        return work(connection)

    async def close(self) -> None:
        """Commits what is waiting, then closes all connections."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        with self._guard:
            for connection in self._all_readers:
                connection.close()
            self._all_readers.clear()
        self._writer_connection.close()

    # The writer thread -------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while len(batch) < _BATCH and batch[-1] is not None:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            stop = batch[-1] is None
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._run(jobs)
            if stop:
                return

    def _run(self, jobs: list[_Job]) -> None:
        connection = self._writer_connection
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, _, _ in jobs:
                outcomes.append(self._one(connection, work))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            outcomes = [(None, _translated(error))] * len(jobs)
        for (_, loop, future), (value, failure) in zip(jobs, outcomes, strict=True):
            try:
                loop.call_soon_threadsafe(_answer, future, value, failure)
            except RuntimeError:
                continue  # the loop was closed while its write was on the way

    @staticmethod
    def _one(
        connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]
    ) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT job")
        try:
            value = work(connection)
        except Exception as error:
            if not connection.in_transaction:  # SQLite ended it: a full disk, an I/O error
                raise
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            return None, _translated(error)
        connection.execute("RELEASE job")
        return value, None


def _translated(error: Exception) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return ResourceExhausted("metadata: no space left on the disk")
    return error


def _answer(future: asyncio.Future[Any], value: Any, failure: BaseException | None) -> None:
    if future.cancelled():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(value)
