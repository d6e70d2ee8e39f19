"""References that depend on when a snapshot was used last.

``containerd.io/gc.cond.snapshot.NAME[/X]`` = ``usedat<24h|KEY`` among the labels of content or an
image keeps the snapshot KEY while it was used less than a day ago (``usedat>24h``: while it was
not); of several conditions, separated by commas, one is enough. The snapshot tells its last use in
``containerd.io/gc.cond.value-usedat`` (RFC 3339). What does not parse counts for nothing.

The rows of ``conditions`` are either such a reference (operator ``<`` or ``>``, the value a span in
nanoseconds) or the use of their owner (operator ``@``, a time). ``references`` keeps them beside
the edges; ``marking`` compares them with the time of a collection.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple

from .nodes import CONTENT, IMAGES, Node, is_snapshot, nanoseconds, snapshots

_PREFIX = "containerd.io/gc.cond."
_SNAPSHOT = "containerd.io/gc.cond.snapshot"
_USED = "containerd.io/gc.cond.value-usedat"
_CONDITION = re.compile(r"usedat(?P<operator>[<>])(?P<span>[^=].*)\Z", re.DOTALL)
_PART = re.compile(r"(?P<count>[0-9]+\.?[0-9]*|\.[0-9]+)(?P<unit>ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_UNITS = {
    "ns": 1,
    "us": 1000,
    "\u00b5s": 1000,
    "\u03bcs": 1000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


MET = """
SELECT c.namespace AS namespace, c.owner_kind AS kind, c.owner_key AS key,
        c.kind AS to_kind, c.key AS to_key
    FROM conditions c CROSS JOIN conditions u
        ON u.namespace = c.namespace AND u.owner_kind = c.kind AND u.owner_key = c.key
    WHERE u.operator = '@' AND (c.operator = '<' AND :now - u.value < c.value
        OR c.operator = '>' AND :now - u.value > c.value)
"""
"""A query: the references whose condition is met at ``:now``."""


class Row(NamedTuple):
    """The columns after the owner's."""

    kind: str
    key: str
    operator: str
    value: int


def rows(node: Node, labels: Mapping[str, str]) -> Iterator[Row]:
    """What the labels of a thing say: references of content and images, uses of snapshots."""
    for label, value in labels.items():
        if not label.startswith(_PREFIX):
            continue
        if label.startswith(_SNAPSHOT) and node.kind in (CONTENT, IMAGES):
            snapshotter = label.removeprefix(_SNAPSHOT).lstrip("./").partition("/")[0]
            yield from _references(snapshots(snapshotter), value)
        elif label.startswith(_USED) and is_snapshot(node.kind):
            used = nanoseconds(value)
            if used is not None:
                yield Row("", "", "@", used)


def _references(kind: str, value: str) -> Iterator[Row]:
    conditions, bar, key = value.partition("|")
    for condition in conditions.split(",") if bar else ():
        match = _CONDITION.match(condition)
        span = None if match is None else _span(match["span"])
        if match is not None and span is not None:
            yield Row(kind, key, match["operator"], span)


def _span(text: str) -> int | None:
    """A duration in the form that Go writes (``1h30m``) in nanoseconds; None if it is none."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total, position = Decimal(0), 0
    while match := _PART.match(rest, position):
        total += Decimal(match["count"]) * _UNITS[match["unit"]]
        position = match.end()
    if not position or position < len(rest) or total >= 1 << 63:
        return None
    return sign * int(total)


def insert(
    connection: sqlite3.Connection, namespace: str, node: Node, labels: Mapping[str, str]
) -> None:
    """Notes what the labels say; earlier rows of the owner are gone."""
    found = [(namespace, *node, *row) for row in rows(node, labels)]
    if found:
        connection.executemany(
            "INSERT OR IGNORE INTO conditions VALUES (?, ?, ?, ?, ?, ?, ?)", found
        )


def delete(connection: sqlite3.Connection, namespace: str, node: Node) -> None:
    """Forgets what the labels of a thing said."""
    connection.execute(
        "DELETE FROM conditions WHERE namespace = ? AND owner_kind = ? AND owner_key = ?",
        (namespace, *node),
    )
