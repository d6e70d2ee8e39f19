"""Checks that records can be read: labels, times, and the messages of containers and sandboxes.

Labels that do not parse are made again from what else the row and its edges tell. A container or a
sandbox whose message does not parse is only reported: nothing else knows what it said, and deleting
it is for its owner to decide.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from supervisord.contracts.checks import Finding, Options, Progress, Report
from supervisord.contracts.errors import DataLoss

from . import container_records, references, sandbox_records
from . import labels as label_rules
from .commits import Commits

_PAGE = 500
_AGAIN = "labels are made again from the references that it is known to have"


@dataclass(frozen=True, slots=True)
class _Table:
    """A table with labels: its key columns, the columns of JSON labels, and the type of its nodes,
    with a snapshotter appended where there is one."""

    name: str
    keys: Sequence[str]
    packed: Sequence[str]
    kind: str
    noun: str


_LABELLED = (
    _Table("namespaces", ("name",), ("labels",), "", "namespace"),
    _Table("images", ("namespace", "name"), ("labels", "annotations"), references.IMAGES, "image"),
    _Table("leases", ("namespace", "id"), ("labels",), references.LEASES, "lease"),
    _Table("blobs", ("namespace", "digest"), ("labels",), references.CONTENT, "content"),
    _Table("snapshots", ("namespace", "snapshotter", "key"), ("labels",), "snapshots/", "snapshot"),
)
_MESSAGES: Sequence[tuple[str, str, Callable[[bytes], object]]] = (
    ("containers", "container", container_records.parse),
    ("sandboxes", "sandbox", sandbox_records.decode),
)


async def check_records(commits: Commits, options: Options) -> AsyncGenerator[Report, None]:
    """All rows of all nouns."""
    for done, table in enumerate(_LABELLED):
        last: tuple[str, ...] | None = None
        while page := commits.read(partial(_page, table=table, after=last)):
            last = page[-1][: len(table.keys)]
            for row in page:
                for finding in _bad_labels(table, row, repair=options.repair):
                    if options.repair:
                        await commits.write(partial(_mend, table=table, key=row[: len(table.keys)]))
                    yield finding
        yield Progress("records", done + 1, len(_LABELLED) + len(_MESSAGES))
    for done, (name, noun, parse) in enumerate(_MESSAGES):
        for namespace, id, record in commits.read(
            lambda c: c.execute(f"SELECT namespace, id, record FROM {name}").fetchall()  # noqa: B023, S608
        ):
            try:
                parse(record)
            except (ValueError, TypeError) as error:
                remedy = f"'sctl -n {namespace} {name} rm {id}' drops it"
                yield Finding("record", id, "damaged", f"{noun}: {error}", namespace, remedy)
        yield Progress("records", len(_LABELLED) + done + 1, len(_LABELLED) + len(_MESSAGES))


def _page(
    connection: sqlite3.Connection, table: _Table, after: tuple[str, ...] | None
) -> list[tuple[Any, ...]]:
    keys = ", ".join(table.keys)
    marks = ", ".join("?" * len(table.keys))
    where = f" WHERE ({keys}) > ({marks})" if after else ""
    return connection.execute(
        f"SELECT {keys}, {', '.join(table.packed)} FROM {table.name}{where}"  # noqa: S608
        f" ORDER BY {keys} LIMIT {_PAGE}",
        after or (),
    ).fetchall()


def _bad_labels(table: _Table, row: tuple[Any, ...], *, repair: bool) -> list[Finding]:
    found = []
    *key, name = row[: len(table.keys)]
    for column, value in zip(table.packed, row[len(table.keys) :], strict=True):
        try:
            label_rules.unpack(value)
        except DataLoss as error:
            found.append(
                Finding(
                    "record",
                    str(name),
                    "damaged",
                    f"{table.noun}: {column}: {error}",
                    str(key[0]) if key else str(name),
                    _AGAIN,
                    repair,
                )
            )
    return found


def _mend(connection: sqlite3.Connection, table: _Table, key: tuple[str, ...]) -> None:
    where = " AND ".join(f"{column} = ?" for column in table.keys)
    for column in table.packed:
        query = f"SELECT {column} FROM {table.name} WHERE {where}"  # noqa: S608
        found = connection.execute(query, key).fetchone()
        if found is None:
            return
        try:
            label_rules.unpack(found[0])
        except DataLoss:
            labels = _known_labels(connection, table, key) if column == "labels" else {}
            connection.execute(
                f"UPDATE {table.name} SET {column} = ? WHERE {where}",  # noqa: S608
                (label_rules.pack(labels), *key),
            )


def _known_labels(
    connection: sqlite3.Connection, table: _Table, key: tuple[str, ...]
) -> dict[str, str]:
    """What the other columns and the edges say that labels must have said."""
    labels: dict[str, str] = {}
    where = " AND ".join(f"{column} = ?" for column in table.keys)
    columns = [str(c[1]) for c in connection.execute(f"PRAGMA table_info({table.name})")]
    row = connection.execute(f"SELECT * FROM {table.name} WHERE {where}", key).fetchone()  # noqa: S608
    values = dict(zip(columns, row, strict=True))
    if values.get("root"):
        labels["containerd.io/gc.root"] = "recovered"
    if values.get("flat"):
        labels["containerd.io/gc.flat"] = "recovered"
    if isinstance(values.get("expires_at"), int):
        moment = datetime.fromtimestamp(values["expires_at"] / 1e9, UTC)
        labels["containerd.io/gc.expire"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if table.kind:
        kind = table.kind if not table.kind.endswith("/") else table.kind + key[1]
        for number, target in enumerate(_targets(connection, key[0], kind, key[-1])):
            labels[f"{_label(target)}{_separator(target)}{number}"] = target.key
    return labels


def _targets(
    connection: sqlite3.Connection, namespace: str, kind: str, key: str
) -> list[references.Node]:
    """What a thing keeps by a label of its own: not its parent or target, which flat edges are."""
    rows = connection.execute(
        "SELECT to_kind, to_key FROM refs WHERE namespace = ? AND owner_kind = ? AND owner_key = ?"
        " AND kind = owner_kind AND key = owner_key AND flat = 0 ORDER BY to_kind, to_key",
        (namespace, kind, key),
    )
    return [references.Node(*row) for row in rows]


def _label(target: references.Node) -> str:
    noun, slash, snapshotter = target.kind.partition("/")
    if slash:
        return f"containerd.io/gc.ref.snapshot.{snapshotter}"
    return f"containerd.io/gc.ref.{'image' if noun == references.IMAGES else noun}"


def _separator(target: references.Node) -> str:
    return "/" if "/" in target.kind else "."
