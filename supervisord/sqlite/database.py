"""One SQLite database: a writer thread with group commit, and read-only connections.

All writes are short synchronous closures. The writer takes whatever is waiting, runs it in one
transaction, commits once (``synchronous=FULL``), and answers all: closures that arrive while a
commit is being synced share the next one. Where several callers are at it, the writer lets more of
them arrive for a moment first. A closure that raises before it has changed anything leaves nothing
to undo; where one has, all run again, each in a savepoint, and only its own is undone.

A closure touches nothing but its connection, because it may run twice: also when a shared commit
fails for lack of space, each is run again alone, so that one large write does not fail the small
ones beside it. A cancelled waiter means "perhaps committed": the closure runs all the same.

A full disk must not forbid deleting: ``reserve`` has room for writes that say they free something,
and the others are refused before they take it.

Checkpoints (moving the log into the database file) take long, but need not hold up a write: they
run in a thread and on a connection of their own, after a number of commits, and after fewer when
the writer has nothing to do. SQLite's own checkpoint at commit is only the backstop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from supervisord.contracts.errors import ResourceExhausted, Unavailable

from . import faults
from .backup import copied_before, pinned
from .migrations import Migration, NewerDatabase, migrate
from .reserve import LEAST, LOW, Reserve

T = TypeVar("T")

log = logging.getLogger(__name__)

_BATCH = 256
_CROWD = 3
_GATHER_SECONDS = 0.002
_BUSY_MS = 5000
_RESTART_MS = 200
_CHECKPOINT_COMMITS = 512
_CHECKPOINT_IDLE_COMMITS = 64
_IDLE_SECONDS = 1.0
_AUTOCHECKPOINT_PAGES = 8192


@dataclass(slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    freeing: bool
    value: Any = None
    failure: BaseException | None = None


class _Entangled(Exception):
    """What a failed job has changed cannot be told from what the others have."""


def _connect(path: str, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{path}" + ("?mode=ro" if read_only else ""),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")  # a full disk must not forbid to sort
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepared(path: str, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """The writer's connection with all migrations taken; errors name the file."""
    connection = _connect(path, read_only=False)
    try:
        # Also with nothing to migrate: what cannot be read or written is to be known now.
        copied_before(connection, Path(path), len(migrations))
        migrate(connection, migrations)
    except NewerDatabase as error:
        connection.close()
        raise NewerDatabase(f"{path}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _opened(path: str, migrations: Sequence[Migration], reserve: Reserve) -> sqlite3.Connection:
    """Gives up the reserve where the log and its index cannot be laid down without."""
    reserve.bring_log()
    try:
        try:
            return _with_index(path, migrations, reserve)
        except (sqlite3.Error, OSError) as error:
            reserve.release()
            if not faults.is_full(error, path) or not reserve.give_up():
                raise
        return _with_index(path, migrations, reserve)
    except (sqlite3.DatabaseError, OSError) as error:
        reserve.release()
        faults.tell(error, path)
        raise


def _with_index(path: str, migrations: Sequence[Migration], reserve: Reserve) -> sqlite3.Connection:
    connection = _prepared(path, migrations)
    try:
        reserve.hold_index()
    except BaseException:
        connection.close()
        raise
    return connection


class Database:
    """An open database. Make it with ``open``; end it with ``close``."""

    def __init__(self, path: str | Path, migrations: Sequence[Migration]) -> None:
        self.path = str(path)
        self._reserve = Reserve(self.path)
        self._writer_connection = _opened(self.path, migrations, self._reserve)
        self._reserve.lay_log()
        self._reserve.lay()
        self._readers = threading.local()
        self._all_readers: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._checkpointer: threading.Thread | None = None
        self._closed = False
        self._changes = self._writer_connection.total_changes
        self._thread = threading.Thread(
            target=self._serve, name=f"sqlite-writer:{Path(self.path).name}", daemon=True
        )
        self._thread.start()

    @classmethod
    async def open(cls, path: str | Path, migrations: Sequence[Migration]) -> Database:
        """Opens or makes the database and takes the migrations that are missing.

        Raises migrations.NewerDatabase, DataLoss for a file that is damaged or no database,
        ResourceExhausted on a full disk, FailedPrecondition where nothing can be written,
        sqlite3.OperationalError for one that cannot be opened."""
        return await asyncio.to_thread(cls, path, migrations)

    async def write(self, work: Callable[[sqlite3.Connection], T], *, freeing: bool = False) -> T:
        """Runs ``work`` in the writer thread and returns its result once it is on disk.
        ``freeing`` marks a write that lets something be deleted.

        Raises whatever ``work`` raises (its changes undone), ResourceExhausted on a full disk,
        FailedPrecondition on a read-only one, Unknown on one that fails, DataLoss, Unavailable
        once closed."""
        if self._closed:
            raise Unavailable(f"the database {self.path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, loop, future, freeing))
        return await future

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` on this thread's read-only connection. It sees all that was committed,
        and never waits for the writer. Keep it short on the event loop.

        Raises DataLoss, Unknown on a disk that fails, Unavailable once closed."""
        try:
            connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
            if connection is None or self._closed:
                connection = self._new_reader()
            try:
                return work(connection)
            except sqlite3.InterfaceError:
                # Seen once, in thousands of starts: SQLite took a statement for one in use. What
                # reads has changed nothing, and a new connection has no statements.
                log.warning("%s: read anew on another connection", self.path, exc_info=True)
                return work(self._new_reader())
        except sqlite3.Error as error:
            faults.tell(error, self.path)
            raise

    @property
    def changes(self) -> int:
        """Grows with every row that was changed. A later write whose connection still has these
        ``total_changes`` knows that nothing was written in between, nor before it in its own
        transaction."""
        return self._changes

    async def pinned(self, others: Iterable[Path] = ()) -> Sequence[sqlite3.Connection]:
        """Connections to this database and to ``others``, each of which goes on seeing what is
        committed there now, for as long as it is open: at one moment of this database's writer.
        The caller closes them. Raises as ``write`` does."""
        paths = [Path(self.path), *others]
        return await self.write(lambda _: pinned(paths), freeing=True)

    async def close(self) -> None:
        """Commits what is waiting, then closes all connections."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        if self._checkpointer is not None:
            await asyncio.to_thread(self._checkpointer.join)
        # The last connection to close checkpoints the log, which can take a while.
        await asyncio.to_thread(self._close_connections)

    def _close_connections(self) -> None:
        self._reserve.keep_log()
        with self._guard:
            for connection in self._all_readers:
                connection.close()
            self._all_readers.clear()
        self._writer_connection.close()
        self._reserve.release()
        self._reserve.trim_log()

    def _new_reader(self) -> sqlite3.Connection:
        with self._guard:
            if self._closed:
                raise Unavailable(f"the database {self.path} is closed")
            connection = _connect(self.path, read_only=True)
            self._readers.connection = connection
            self._all_readers.append(connection)
            return connection

    # The writer thread -------------------------------------------------------------------

    def _serve(self) -> None:
        commits = answered = 0
        while True:
            if commits >= _CHECKPOINT_COMMITS and self._start_checkpoint():
                commits = 0
            try:
                idle = _IDLE_SECONDS if commits >= _CHECKPOINT_IDLE_COMMITS else None
                batch = [self._jobs.get(timeout=idle)]
            except queue.Empty:
                if self._start_checkpoint():
                    commits = 0
                continue
            if answered + self._jobs.qsize() + 1 >= _CROWD:
                # A commit costs the same for one as for many: these callers come again at once.
                time.sleep(_GATHER_SECONDS)
            while len(batch) < _BATCH and batch[-1] is not None:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            jobs = [job for job in batch if job is not None]
            answered = len(jobs)
            if jobs:
                commits += self._serve_batch(jobs)
            if batch[-1] is None:
                return

    def _serve_batch(self, jobs: list[_Job]) -> int:
        """Answers what should be added to the count of commits since the last checkpoint."""
        room = self._reserve.free()
        wanted = jobs if room >= LEAST else [job for job in jobs if job.freeing]
        if wanted:
            self._run(wanted)
        for job in jobs:
            if room < LEAST and not job.freeing:
                job.failure = ResourceExhausted(f"{self.path}: no space left on the disk")
        _deliver(jobs)
        if room >= LOW:
            return 1
        # The database must have grown by what is in the log as long as it can.
        _restart_log(self._writer_connection)
        return 0

    def _run(self, jobs: list[_Job]) -> None:
        failure = self._transaction(jobs)
        if failure is None:
            return
        if faults.is_disk(failure) and len(jobs) > 1:
            for job in jobs:
                self._run([job])
            return
        if jobs[0].freeing and faults.is_full(failure, self.path):
            failure = self._make_room(jobs)
            if failure is None:
                return
        for job in jobs:
            job.value, job.failure = None, faults.translated(failure, self.path)

    def _make_room(self, jobs: list[_Job]) -> BaseException | None:
        """Again, with the log from its start on, and then with the reserve given up, too."""
        _restart_log(self._writer_connection)
        failure = self._transaction(jobs)
        if failure is not None and self._reserve.give_up():
            _restart_log(self._writer_connection)
            failure = self._transaction(jobs)
        self._reserve.lay()
        return failure

    def _transaction(self, jobs: list[_Job]) -> BaseException | None:
        """Runs the jobs and commits; answers what kept it from committing."""
        failure = self._attempt(jobs, self._plain)
        if isinstance(failure, _Entangled):
            failure = self._attempt(jobs, self._saved)
        return failure

    def _attempt(
        self, jobs: list[_Job], run: Callable[[sqlite3.Connection, _Job], None]
    ) -> BaseException | None:
        connection = self._writer_connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                job.value = job.failure = None
                run(connection, job)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            return error
        finally:
            self._changes = connection.total_changes
        return None

    def _plain(self, connection: sqlite3.Connection, job: _Job) -> None:
        """Raises _Entangled where the job has failed after it had changed something."""
        changes = connection.total_changes
        try:
            job.value = job.work(connection)
        except Exception as error:
            self._failed(connection, job, error)
            if connection.total_changes != changes:
                raise _Entangled from error

    def _saved(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.value = job.work(connection)
        except Exception as error:
            self._failed(connection, job, error)
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _failed(self, connection: sqlite3.Connection, job: _Job, error: Exception) -> None:
        """Notes what the job's caller is told. Raises ``error`` where it concerns the whole
        transaction: a full disk or an I/O error does, and one that has ended it."""
        if not connection.in_transaction or faults.is_disk(error):
            raise error
        job.failure = faults.translated(error, self.path) if faults.is_damage(error) else error

    def _start_checkpoint(self) -> bool:
        """False while an earlier one is still running."""
        if self._checkpointer is not None and self._checkpointer.is_alive():
            return False
        if not self._reserve.is_whole:
            self._reserve.lay()
        self._checkpointer = threading.Thread(
            target=_checkpoint, args=(self.path,), name=f"sqlite-checkpoint:{Path(self.path).name}"
        )
        self._checkpointer.start()
        return True


def _checkpoint(path: str) -> None:
    # It may fail on a full disk; the log then stays, and the next one tries again.
    with contextlib.suppress(sqlite3.Error):
        connection = _connect(path, read_only=False)
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            connection.close()


def _restart_log(connection: sqlite3.Connection) -> None:
    """What is in the log goes into the database, so that the log is written over from its start
    on; unless somebody reads from it for longer than that."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute(f"PRAGMA busy_timeout = {_RESTART_MS}")
        try:
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")


def _deliver(jobs: Iterable[_Job]) -> None:
    """Answers all jobs, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, own in by_loop.items():
        # A closed loop has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_answer, own)


def _answer(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.cancelled():
            continue
        if job.failure is not None:
            job.future.set_exception(job.failure)
        else:
            job.future.set_result(job.value)
