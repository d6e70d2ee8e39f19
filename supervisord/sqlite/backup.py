"""Copies of a database as it was at one moment, while others go on writing to it.

A connection that has begun to read goes on seeing the same state, whatever is written meanwhile
(WAL), so a copy holds up nobody. Used by ``Database``, by backups and by repairs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def pinned(paths: Sequence[Path]) -> list[sqlite3.Connection]:
    """A connection to each, which sees what is committed now. Raises sqlite3.Error."""
    made: list[sqlite3.Connection] = []
    try:
        for path in paths:
            made.append(_reader(path))
            made[-1].execute("BEGIN")
            made[-1].execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        for connection in made:
            connection.close()
        raise
    return made


def copy(source: sqlite3.Connection, target: Path) -> None:
    """Writes what ``source`` sees as a database file of its own, durably; it appears whole or not
    at all. Raises sqlite3.Error, OSError."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copied:
            source.backup(copied)
            copied.execute("PRAGMA journal_mode = DELETE")  # one file, that can be moved
        part.chmod(0o600)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def copied_before(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copies the database to ``PATH.vN`` where it is of an older version N: a migration cannot be
    taken back. Goes on without where there is no room for it."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 < found < version:
        return
    target = path.with_name(f"{path.name}.v{found}")
    try:
        copy(connection, target)
    except (OSError, sqlite3.OperationalError) as error:
        log.warning("%s is migrated without a copy: %s", path, error)
    else:
        log.info("%s is kept as %s before it is migrated", path, target.name)


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
