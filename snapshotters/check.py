"""Checks a directory snapshotter: its index against its folders.

A committed snapshot keeps its parent's files from being needed again, so that one whose folder is
gone must not stay: it is dropped with all that stands on it, unless something writable does. Then
only a person can decide. Folders that no row stands for are removed, as ``cleanup`` does.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from supervisord.contracts.checks import Finding, Options, Progress, Report
from supervisord.contracts.snapshots import Kind
from supervisord.sqlite.database import Database

from . import index

_DROP = "it is dropped with what stands on it: it can be unpacked again"
_KEEP = "writable snapshots stand on it: remove those first, or restore the folder"


@dataclass(frozen=True, slots=True)
class Folders:
    """What a check needs of a snapshotter: its index, the directory or file that a snapshot must
    have (None: it needs none), and how many inodes a committed one has now (None: not known)."""

    name: str
    database: Database
    place: Callable[[index.Row], str | None]
    count: Callable[[index.Row], int | None]


async def check_folders(folders: Folders, options: Options) -> AsyncGenerator[Report, None]:
    """Every row in order of id."""
    found = folders.database.read(_all)
    for done, row in enumerate(found):
        wrong = await asyncio.to_thread(_wrong, folders, row, quick=options.quick)
        if wrong is not None and _still(folders, row):
            problem, detail = wrong
            writable = row.info.kind is Kind.ACTIVE or folders.database.read(
                partial(_writable_above, id=row.id)
            )
            repaired = False
            if options.repair and not writable:
                await folders.database.write(partial(_drop, id=row.id), freeing=True)
                repaired = True
            remedy = _KEEP if writable else _DROP
            yield Finding("snapshot", row.info.name, problem, detail, "", remedy, repaired)
        if done % 32 == 31 or done + 1 == len(found):
            yield Progress(f"folders of {folders.name}", done + 1, len(found))


def _wrong(folders: Folders, row: index.Row, *, quick: bool) -> tuple[str, str] | None:
    place = folders.place(row)
    if place is None:
        return None
    if not Path(place).exists():
        return "missing", f"{place} is gone"
    if quick or row.info.kind is not Kind.COMMITTED or not row.usage.inodes:
        return None
    try:
        inodes = folders.count(row)
    except OSError as error:
        return "unreadable", f"{place} cannot be read: {error.strerror or error}"
    if inodes in (None, row.usage.inodes):
        return None
    detail = f"{place} has {inodes} inodes, and had {row.usage.inodes} when committed"
    return "damaged", detail


def _all(connection: sqlite3.Connection) -> list[index.Row]:
    found: list[index.Row] = []
    after = ""
    while page := index.page(connection, after):
        found += page
        after = page[-1].info.name
    return sorted(found, key=lambda row: row.id)


def _still(folders: Folders, row: index.Row) -> bool:
    """Whether it is there as before: it may have been removed or committed meanwhile."""
    return row.id in folders.database.read(index.ids)


_ABOVE = """
    WITH RECURSIVE above (id, depth) AS (
        SELECT id, 0 FROM snapshots WHERE id = :id
        UNION ALL
        SELECT s.id, depth + 1 FROM snapshots s JOIN above ON s.parent = above.id
    )
"""


def _writable_above(connection: sqlite3.Connection, id: int) -> bool:
    query = _ABOVE + "SELECT 1 FROM above JOIN snapshots USING (id) WHERE kind = :kind"  # noqa: S608
    return connection.execute(query, {"id": id, "kind": int(Kind.ACTIVE)}).fetchone() is not None


def _drop(connection: sqlite3.Connection, id: int) -> None:
    query = _ABOVE + "SELECT id FROM above ORDER BY depth DESC"  # noqa: S608
    for (each,) in connection.execute(query, {"id": id}).fetchall():
        connection.execute("DELETE FROM snapshots WHERE id = ?", (each,))
