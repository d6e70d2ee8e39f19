"""The rows of activations, in a database of the state folder: mounts do not outlive it either.

A row is written before its first mount, ``active`` only when all are made. The functions run inside
``Database.write`` and ``Database.read``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from supervisord.contracts.mounts import Activation, ActiveMount
from supervisord.contracts.snapshots import Mount

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE activations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        lease TEXT NOT NULL,
        labels TEXT NOT NULL,
        boot TEXT NOT NULL,
        handlers TEXT NOT NULL,
        active TEXT,
        system TEXT,
        UNIQUE (namespace, name)
    )
    """,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One activation. ``boot`` is the one of the machine in which it was made; ``handlers`` are
    those of its mounts in their order ("" for the kernel); ``whole`` once all are made."""

    id: int
    namespace: str
    name: str
    lease: str
    boot: str
    handlers: Sequence[str]
    whole: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def activation(self) -> Activation:
        """What clients see of it."""
        return Activation(self.name, self.active, self.system, self.labels, self.id)


def insert(
    connection: sqlite3.Connection,
    namespace: str,
    name: str,
    lease: str,
    labels: Mapping[str, str],
    boot: str,
    handlers: Sequence[str],
) -> int:
    """The id of a new row of which nothing is mounted yet."""
    done = connection.execute(
        "INSERT INTO activations (namespace, name, lease, labels, boot, handlers) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (namespace, name, lease, _text(dict(labels)), boot, _text(list(handlers))),
    )
    return done.lastrowid or 0


def complete(
    connection: sqlite3.Connection,
    id: int,
    active: Sequence[ActiveMount],
    system: Sequence[Mount],
) -> None:
    """All is mounted."""
    connection.execute(
        "UPDATE activations SET active = ?, system = ? WHERE id = ?",
        (_text(list(active)), _text(list(system)), id),
    )


def ending(connection: sqlite3.Connection, id: int) -> None:
    """It is about to be taken away: from now on a half-made one."""
    connection.execute("UPDATE activations SET active = NULL WHERE id = ?", (id,))


def relabel(connection: sqlite3.Connection, id: int, labels: Mapping[str, str]) -> None:
    """Other labels."""
    connection.execute("UPDATE activations SET labels = ? WHERE id = ?", (_text(dict(labels)), id))


def delete(connection: sqlite3.Connection, id: int) -> None:
    """Nothing of it is left."""
    connection.execute("DELETE FROM activations WHERE id = ?", (id,))


def everything(connection: sqlite3.Connection) -> list[Row]:
    """All rows; one that cannot be read counts as half-made."""
    found = connection.execute(
        "SELECT id, namespace, name, lease, boot, handlers, labels, active, system "
        "FROM activations ORDER BY id"
    )
    return [_row(*each) for each in found]


def _row(
    id: int,
    namespace: str,
    name: str,
    lease: str,
    boot: str,
    handlers: str,
    labels: str,
    active: str | None,
    system: str | None,
) -> Row:
    try:
        return Row(
            id,
            namespace,
            name,
            lease,
            boot,
            msgspec.json.decode(handlers, type=list[str]),
            active is not None,
            msgspec.json.decode(labels, type=dict[str, str]),
            [
                replace(each, mount=_hashable(each.mount))
                for each in msgspec.json.decode(active or "[]", type=list[ActiveMount])
            ],
            [_hashable(each) for each in msgspec.json.decode(system or "[]", type=list[Mount])],
        )
    except msgspec.MsgspecError:
        return Row(id, namespace, name, lease, boot, ())


def _hashable(mount: Mount) -> Mount:
    return replace(mount, options=tuple(mount.options))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
