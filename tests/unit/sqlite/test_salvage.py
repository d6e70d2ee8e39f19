"""Damaged databases: what is not on a damaged page is taken over."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from supervisord.contracts.errors import DataLoss
from supervisord.sqlite import salvage
from supervisord.sqlite.database import Database
from supervisord.sqlite.migrations import migrate

ROWS = 3000
SCHEMA = (
    """
    CREATE TABLE names (
        namespace TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE records (id TEXT NOT NULL UNIQUE, value BLOB NOT NULL);
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER REFERENCES snapshots (id)
    )
    """,
    "CREATE TABLE late (x INTEGER PRIMARY KEY)",
)
PAGE = 4096


def made(path: Path, version: int = 2) -> None:
    """A database of some hundred pages, all of them in the file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, SCHEMA[:version])
        connection.execute("BEGIN")
        for number in range(ROWS):
            row = (f"ns{number % 3}", f"name-{number:05}", b"v" * 200)
            connection.execute("INSERT INTO names VALUES (?, ?, ?)", row)
            connection.execute("INSERT INTO records VALUES (?, ?)", (f"id-{number}", b"r" * 200))
        for number in range(1, 11):
            connection.execute("INSERT INTO snapshots VALUES (?, ?)", (number, number - 1 or None))
        connection.execute("DELETE FROM snapshots WHERE id = 10")
        connection.execute("COMMIT")


def leaves(path: Path, table: str) -> list[int]:
    """The numbers of the leaf pages of a table (pages whose first byte says so), in order."""
    kind = 10 if table == "names" else 13
    data = path.read_bytes()
    sign = b"name-0" if table == "names" else b"rrrr"
    return [
        page
        for page in range(1, len(data) // PAGE)
        if data[page * PAGE] == kind and data.count(sign, page * PAGE, (page + 1) * PAGE) > 5
    ]


def overwrite(path: Path, pages: list[int], byte: bytes = b"\xa5") -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(byte * PAGE)


def count(path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


@pytest.mark.parametrize("byte", [b"\xa5", b"\0"])
@pytest.mark.parametrize("table", ["names", "records"])
def test_only_damaged_pages_are_lost(tmp_path: Path, table: str, byte: bytes) -> None:
    path = tmp_path / "db"
    made(path)
    assert salvage.faults_of(path, quick=False) == []
    hit = leaves(path, table)[20:120:33]
    assert len(hit) == 4
    overwrite(path, hit, byte)
    assert salvage.faults_of(path, quick=True)
    done = salvage.salvage(path, SCHEMA)
    assert list(done.damaged) == [table]
    other = "records" if table == "names" else "names"
    assert count(path, other) == ROWS
    assert ROWS - 4 * 22 <= count(path, table) < ROWS  # some 20 rows are on a page
    assert salvage.faults_of(path, quick=False) == []
    assert done.kept.stat().st_size and done.kept.parent == tmp_path
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        (seq,) = connection.execute("SELECT seq FROM sqlite_sequence").fetchone()
        assert seq == 10  # an id never comes twice
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["db", done.kept.name])


def test_a_destroyed_file_becomes_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    made(path)
    overwrite(path, [0])
    done = salvage.salvage(path, SCHEMA)
    assert done.rows == 0 and done.damaged
    assert count(path, "names") == 0
    assert salvage.faults_of(path, quick=False) == []


def test_an_older_database_is_migrated_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "db"
    made(path, version=1)
    overwrite(path, leaves(path, "names")[5:6])
    salvage.salvage(path, SCHEMA)
    assert count(path, "late") == 0
    assert count(path, "records") == ROWS


async def test_damage_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await asyncio.to_thread(made, path)
    overwrite(path, leaves(path, "names")[5:6])
    database = await Database.open(path, SCHEMA)
    try:
        with pytest.raises(DataLoss, match=f"{path}.*supervisord check --repair"):
            database.read(lambda c: c.execute("SELECT * FROM names").fetchall())
        with pytest.raises(DataLoss, match="malformed"):
            await database.write(lambda c: c.execute("UPDATE names SET value = x'00'"))
        assert len(database.read(lambda c: c.execute("SELECT * FROM records").fetchall())) == ROWS
        await database.write(lambda c: c.execute("INSERT INTO records VALUES ('new', x'00')"))
    finally:
        await database.close()
