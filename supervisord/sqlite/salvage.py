"""Takes what can still be read out of a damaged database into a new one.

Each table is read from its start until a damaged page, from its end until one, and then in halves
between the two, so that what is lost is what was on damaged pages and little beside it. The damaged
file is kept beside the new one. Nobody else may have the database open. Called by the offline
check alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backup import copy
from .migrations import Migration, migrate

log = logging.getLogger(__name__)

_DEPTH = 12

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Salvage:
    """``kept`` is where the damaged file is now; ``rows`` how many could be taken over, and
    ``damaged`` the tables of which some could not."""

    kept: Path
    rows: int
    damaged: Sequence[str]


def faults_of(path: Path, *, quick: bool) -> list[str]:
    """What SQLite finds wrong with a database; nothing for one that is whole. ``quick`` leaves out
    whether indexes fit their tables."""
    pragma = "quick_check" if quick else "integrity_check"
    try:
        with contextlib.closing(_readable(path)) as connection:
            found = connection.execute(f"PRAGMA {pragma}(20)").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [line for (text,) in found if text != "ok" for line in str(text).splitlines()]


def salvage(path: Path, migrations: Sequence[Migration]) -> Salvage:
    """Replaces the database by what can be read of it, or by an empty one.

    Raises OSError, sqlite3.Error where the new one cannot be written."""
    part = path.with_name(f"{path.name}.salvaged")
    for leftover in _files(part):
        leftover.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as new:
        rows, damaged = _fill(path, new, migrations)
        whole = path.with_name(f"{path.name}.whole")
        copy(new, whole)
    for leftover in _files(part):
        leftover.unlink(missing_ok=True)
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    for old in _files(path):
        with contextlib.suppress(FileNotFoundError):
            old.rename(f"{kept}{old.name.removeprefix(path.name)}")
    whole.replace(path)
    _sync(path.parent)
    return Salvage(kept, rows, damaged)


def _fill(
    path: Path, new: sqlite3.Connection, migrations: Sequence[Migration]
) -> tuple[int, list[str]]:
    total, damaged = 0, []
    try:
        old = _readable(path)
    except sqlite3.DatabaseError as error:
        log.error("%s: nothing can be read: %s", path, error)
        migrate(new, migrations)
        return 0, ["all"]
    with contextlib.closing(old):
        try:
            (version,) = old.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError:
            version = 0
        version = version if 0 < version <= len(migrations) else len(migrations)
        migrate(new, migrations[:version])
        new.execute("PRAGMA foreign_keys = OFF")
        new.execute("BEGIN")
        for (table,) in new.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall():
            taken, whole = _take(old, new, str(table))
            total += taken
            damaged += [] if whole else [str(table)]
        _take_sequences(old, new)
        _without_parents(new)
        new.execute("COMMIT")
        migrate(new, migrations)
    return total, damaged


def _take(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> tuple[int, bool]:
    """Copies a table; answers how many rows, and whether all could be read."""
    found = new.execute(f"PRAGMA table_info({table})").fetchall()
    if not found:
        return 0, True
    columns = [str(name) for _, name, *_ in found]
    keys = [name for _, name, *_, place in sorted(found, key=lambda c: c[5]) if place] or ["rowid"]
    reading = _Reading(old, table, columns, keys)
    marks = ", ".join("?" * len(columns))
    statement = f"INSERT OR IGNORE INTO {table} VALUES ({marks})"  # noqa: S608 - our own names
    taken = 0
    for row in reading.rows():
        with contextlib.suppress(sqlite3.IntegrityError):  # a value that the schema forbids
            taken += new.execute(statement, row).rowcount
    return taken, reading.whole


def _take_sequences(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """An id that was given out never comes again."""
    with contextlib.suppress(sqlite3.DatabaseError):  # none there, or not to be read
        for name, last in old.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
            change = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?"
            if not new.execute(change, (last, name)).rowcount:
                new.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (name, last))


class _Reading:
    """One table of a damaged database."""

    def __init__(
        self, old: sqlite3.Connection, table: str, columns: Sequence[str], keys: Sequence[str]
    ) -> None:
        self._old = old
        self._keys = ", ".join(keys)
        self._count = len(keys)
        self._select = f"SELECT {self._keys}, {', '.join(columns)} FROM {table}"  # noqa: S608
        self._holes = "(" + ", ".join("?" * len(keys)) + ")"
        self.whole = True

    def rows(self) -> Iterator[Row]:
        """All that can be read, each once or more often."""
        yield from self._between(None, None, 0)

    def _between(self, low: Row | None, high: Row | None, depth: int) -> Iterator[Row]:
        first = low
        for key, row in self._walk(low, high, "ASC"):
            first = key
            yield row
        if self._ended:
            return
        self.whole = False
        last = high
        for key, row in self._walk(first, high, "DESC"):
            last = key
            yield row
        if self._ended or depth == _DEPTH:
            return
        middle = _middle(first, last)
        if middle is not None:
            yield from self._between(first, middle, depth + 1)
            yield from self._between(middle, last, depth + 1)

    def _walk(self, low: Row | None, high: Row | None, order: str) -> Iterator[tuple[Row, Row]]:
        """Rows strictly between two keys, until the end or a damaged page."""
        tests: list[str] = []
        values: list[Any] = []
        for bound, sign in ((low, ">"), (high, "<")):
            if bound is not None:
                tests.append(f"({self._keys}) {sign} {self._holes}")
                values += bound
        where = " WHERE " + " AND ".join(tests) if tests else ""
        ordering = ", ".join(f"{key} {order}" for key in self._keys.split(", "))
        self._ended = False
        try:
            for found in self._old.execute(f"{self._select}{where} ORDER BY {ordering}", values):
                yield found[: self._count], found[self._count :]
        except sqlite3.DatabaseError as error:
            log.debug("salvage: %s: %s", self._select, error)
            return
        self._ended = True


def _middle(low: Row | None, high: Row | None) -> Row | None:
    """A key about half-way; None where there is nothing to halve."""
    if low is None or high is None:
        return None
    for place, (a, b) in enumerate(zip(low, high, strict=True)):
        if a == b:
            continue
        if isinstance(a, int) and isinstance(b, int):
            between: Any = (a + b) // 2
        elif isinstance(a, str) and isinstance(b, str):
            between = _between_texts(a, b)
        else:
            return None
        if between in (a, b):
            return None
        return (*low[:place], between, *(_smallest(value) for value in low[place + 1 :]))
    return None


def _between_texts(low: str, high: str) -> str:
    width = max(len(low), len(high)) + 1
    pairs = zip(low.ljust(width, "\0"), high.ljust(width, "\0"), strict=True)
    same = []
    for a, b in pairs:
        if a == b:
            same.append(a)
            continue
        return "".join(same) + chr((ord(a) + ord(b)) // 2) + "~"
    return low


def _smallest(value: Any) -> Any:
    return "" if isinstance(value, str) else 0


def _without_parents(new: sqlite3.Connection) -> None:
    """Drops rows whose parents are lost, by the tables' own foreign keys."""
    while lost := new.execute("PRAGMA foreign_key_check").fetchall():
        for table, rowid, *_ in lost:
            new.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))  # noqa: S608


def _readable(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)


def _files(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
