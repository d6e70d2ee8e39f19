"""Rows to things, where one damaged row, or page, must not hide the others (every List)."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from supervisord.contracts.errors import DataLoss
from supervisord.sqlite import faults

T = TypeVar("T")

log = logging.getLogger(__name__)

DAMAGED: Counter[str] = Counter()
"""How often a damaged record was left out, by noun: for a metric."""


def readable(rows: Iterable[Any], convert: Callable[[Any], T], noun: str) -> Iterator[T]:
    """The things that the rows describe; a row that does not parse is reported and left out."""
    for row in rows:
        try:
            yield convert(row)
        except (ValueError, TypeError, DataLoss) as error:
            DAMAGED[noun] += 1
            log.error("a damaged %s record is left out: %s: %.200r", noun, error, row)


def fetched(
    connection: sqlite3.Connection, query: str, values: Sequence[Any], order: str
) -> list[tuple[Any, ...]]:
    """The rows of a query in the order of a column. Where pages of the database are damaged that is
    reported, and the rows are those before the first such page and those behind the last."""
    try:
        return connection.execute(f"{query} ORDER BY {order}", values).fetchall()
    except sqlite3.DatabaseError as error:
        if not faults.is_damage(error):
            raise
        DAMAGED["page"] += 1
        log.error("rows on damaged pages are left out of %r: %s: %s", query, error, faults.ADVICE)
    before = _until_damaged(connection, f"{query} ORDER BY {order} ASC", values)
    behind = _until_damaged(connection, f"{query} ORDER BY {order} DESC", values)
    seen = set(before)
    return [*before, *(row for row in reversed(behind) if row not in seen)]


def _until_damaged(
    connection: sqlite3.Connection, query: str, values: Sequence[Any]
) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    try:
        for row in connection.execute(query, values):
            found.append(row)
    except sqlite3.DatabaseError as error:
        if not faults.is_damage(error):
            raise
    return found
