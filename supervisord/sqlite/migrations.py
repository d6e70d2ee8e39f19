"""Migrations: an ordered list of steps; a database remembers how many it has taken."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from supervisord.contracts.errors import FailedPrecondition

Migration = str | Callable[[sqlite3.Connection], None]
"""SQL statements separated by semicolons, or a function that is given the connection."""


class NewerDatabase(FailedPrecondition):
    """The database was written by a newer release than this one."""


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Takes the steps that are missing, each in its own transaction.

    Raises NewerDatabase if the database has taken more steps than we know."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise NewerDatabase(
            f"the database has schema version {version}, but this release knows "
            f"only {len(migrations)}: start a newer release on it"
        )
    for number in range(version, len(migrations)):
        step = migrations[number]
        connection.execute("BEGIN IMMEDIATE")
        try:
            if callable(step):
                step(connection)
            else:
                for statement in filter(str.strip, step.split(";")):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
