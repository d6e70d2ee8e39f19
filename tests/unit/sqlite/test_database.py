"""The writer: group commit, isolation of failures, crashes, full disks, and closing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from supervisord.contracts.errors import (
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from supervisord.sqlite.database import Database
from supervisord.sqlite.migrations import NewerDatabase

TABLE = ("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)",)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = await Database.open(tmp_path / "db", TABLE)
    yield made
    await made.close()


def _count(database: Database) -> int:
    return int(database.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone())[0])


async def test_writes_are_read_back(database: Database) -> None:
    key = await database.write(lambda c: c.execute("INSERT INTO t (v) VALUES (1)").lastrowid)
    assert key == 1
    assert _count(database) == 1
    with pytest.raises(FailedPrecondition, match="readonly"):
        database.read(lambda c: c.execute("DELETE FROM t"))


async def test_a_read_that_sqlite_calls_a_misuse_is_done_anew(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[sqlite3.Connection] = []

    def work(connection: sqlite3.Connection) -> int:
        seen.append(connection)
        if len(seen) == 1:
            raise sqlite3.InterfaceError("bad parameter or other API misuse")
        return int(connection.execute("SELECT 7").fetchone()[0])

    assert database.read(work) == 7
    assert seen[0] is not seen[1]
    assert "read anew on another connection" in caplog.text


async def test_concurrent_writes_share_commits(database: Database) -> None:
    commits: list[str] = []
    connection = database._writer_connection
    connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    release = threading.Event()
    first = asyncio.ensure_future(database.write(lambda c: release.wait(10)))
    rest = [
        asyncio.ensure_future(
            database.write(lambda c, n=number: c.execute("INSERT INTO t VALUES (?, 0)", (n,)))  # type: ignore[misc]
        )
        for number in range(500)
    ]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *rest)
    assert _count(database) == 500
    assert len(commits) == 3  # the first alone, then at most 256 at a time


async def test_a_failing_closure_undoes_only_itself(database: Database) -> None:

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (100, 0)")
        raise NotFound("no")

    results = await asyncio.gather(
        database.write(lambda c: c.execute("INSERT INTO t VALUES (1, 0)")),
        database.write(fails),
        database.write(lambda c: c.execute("INSERT INTO t VALUES (1, 0)")),
        database.write(lambda c: c.execute("INSERT INTO t VALUES (2, 0)")),
        database.write(lambda c: c.execute("this is no SQL")),
        return_exceptions=True,
    )
    assert isinstance(results[1], NotFound)
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert isinstance(results[4], sqlite3.OperationalError)
    rows = database.read(lambda c: c.execute("SELECT k FROM t ORDER BY k").fetchall())
    assert rows == [(1,), (2,)]


async def test_a_closure_that_ends_the_transaction_does_not_end_the_writer(
    database: Database,
) -> None:

    def rude(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")
        raise NotFound("rude")

    with pytest.raises(NotFound):
        await database.write(rude)
    await database.write(lambda c: c.execute("INSERT INTO t VALUES (1, 0)"))
    assert _count(database) == 1


async def test_a_cancelled_write_happens_all_the_same(database: Database) -> None:
    task = asyncio.ensure_future(database.write(lambda c: c.execute("INSERT INTO t VALUES (1, 0)")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(lambda c: None)
    assert _count(database) == 1


async def test_readers_do_not_wait_for_the_writer(database: Database) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (1, 0)")
        inside.set()
        release.wait(10)

    writing = asyncio.ensure_future(database.write(slow))
    await asyncio.to_thread(inside.wait, 10)
    assert _count(database) == 0
    release.set()
    await writing
    assert _count(database) == 1


async def test_each_thread_keeps_one_reader(database: Database) -> None:
    for _ in range(5):
        _count(database)
    await asyncio.to_thread(lambda: [_count(database) for _ in range(5)])
    assert len(database._all_readers) == 2


async def test_close_leaves_nothing_open(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "db", TABLE)
    writes = [
        asyncio.ensure_future(database.write(lambda c: c.execute("INSERT INTO t (v) VALUES (0)")))
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    _count(database)
    await database.close()
    await asyncio.gather(*writes)
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
    assert not [name for name in open_files if name.startswith(str(tmp_path))]
    assert not [t for t in threading.enumerate() if t.name.startswith("sqlite-writer:db")]
    with pytest.raises(Unavailable):
        await database.write(lambda c: None)
    with pytest.raises(Unavailable):
        database.read(lambda c: None)
    await database.close()
    assert not (tmp_path / "db-wal").exists()
    database = await Database.open(tmp_path / "db", TABLE)
    assert _count(database) == 20
    await database.close()


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        if Path(f"/proc/self/fd/{name}").is_symlink():
            yield name


async def test_migrations_are_taken_once(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "db", TABLE)
    await database.close()
    more = (*TABLE, lambda c: c.execute("INSERT INTO t VALUES (7, 0)"))
    for _ in range(2):
        database = await Database.open(tmp_path / "db", more)
        assert _count(database) == 1
        await database.close()
    with pytest.raises(NewerDatabase, match="/db: the database has schema version 2"):
        await Database.open(tmp_path / "db", TABLE)
    with pytest.raises(sqlite3.OperationalError):
        await Database.open(tmp_path / "db", (*more, "CREATE TABLE u (x); nonsense"))
    database = await Database.open(tmp_path / "db", more)
    assert database.read(lambda c: c.execute("SELECT name FROM sqlite_master").fetchall()) == [
        ("t",)
    ]
    await database.close()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(
        DataLoss, match=f"^{file}: file is not a database: stop the daemon, and run"
    ):
        await Database.open(file, TABLE)
    assert file.read_bytes() == b"not a database" * 100


async def test_the_log_does_not_grow_without_end(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "db", TABLE)
    for _ in range(1200):
        await database.write(lambda c: c.execute("REPLACE INTO t VALUES (1, randomblob(3000))"))
    assert (tmp_path / "db-wal").stat().st_size < 16 << 20
    await database.close()


_CHILD = """
import asyncio, os, sys
from supervisord.sqlite.database import Database

async def main():
    database = await Database.open(sys.argv[1], ["CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)"])
    async def insert(number):
        row = "INSERT INTO t VALUES (?, zeroblob(500))"
        await database.write(lambda c: c.execute(row, (number,)))
        os.write(1, b"%d\\n" % number)
    for start in range(0, 1000000, 4):
        await asyncio.gather(*(insert(n) for n in range(start, start + 4)))

asyncio.run(main())
"""


def _killed_after(path: Path, lines: int) -> list[int]:
    """What a writing child had been answered when it was killed, some lines in."""
    command = [sys.executable, "-c", _CHILD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd()) as child:
        assert child.stdout is not None
        try:
            answered = [int(child.stdout.readline()) for _ in range(lines)]
        finally:
            child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines(keepends=True)
    return answered + [int(line) for line in rest if line.endswith(b"\n")]


async def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    for round_number in range(3):
        path = tmp_path / f"db{round_number}"
        answered = await asyncio.to_thread(_killed_after, path, 200 * (round_number + 1))
        database = await Database.open(path, TABLE)
        stored = {k for (k,) in database.read(lambda c: c.execute("SELECT k FROM t").fetchall())}
        assert set(answered) <= stored
        assert len(stored) <= max(answered) + 5
        await database.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount]).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_deletes_work_on_a_full_disk(small_disk: Path) -> None:
    database = await Database.open(small_disk / "db", TABLE)
    for number in range(50):
        await database.write(
            lambda c, n=number: c.execute("INSERT INTO t VALUES (?, zeroblob(1000))", (n,))  # type: ignore[misc]
        )
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    insert = database.write(lambda c: c.execute("INSERT INTO t VALUES (100, zeroblob(3000000))"))
    with pytest.raises(ResourceExhausted, match="no space"):
        await insert
    assert _count(database) == 50
    await database.write(lambda c: c.execute("DELETE FROM t WHERE k < 40"), freeing=True)
    assert _count(database) == 10
    # One write that is too large does not fail the ones that share its commit.
    results = await asyncio.gather(
        database.write(lambda c: c.execute("DELETE FROM t WHERE k = 41"), freeing=True),
        database.write(lambda c: c.execute("INSERT INTO t VALUES (100, zeroblob(9000000))")),
        database.write(lambda c: c.execute("DELETE FROM t WHERE k = 42"), freeing=True),
        return_exceptions=True,
    )
    assert [isinstance(result, ResourceExhausted) for result in results] == [False, True, False]
    assert _count(database) == 8
    filler.unlink()
    await database.write(lambda c: c.execute("INSERT INTO t VALUES (100, zeroblob(100000))"))
    assert _count(database) == 9
    await database.close()
    database = await Database.open(small_disk / "db", TABLE)
    assert _count(database) == 9
    assert (small_disk / "db.reserve").stat().st_size > 1 << 20
    await database.close()
