"""How a store changes the database: one write, then the collector is told, then the events.

Every store is given one ``Commits``. It owns no table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from supervisord.contracts.events import Publisher
from supervisord.contracts.leases import Collector
from supervisord.sqlite.database import Database

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")


class Commits:
    """Writes, and who hears of them. ``publisher`` and ``collector`` may be None in tests."""

    def __init__(self, database: Database, publisher: Publisher | None = None) -> None:
        self.database = database
        self.collector: Collector | None = None
        self._publisher = publisher

    async def write(self, work: Callable[[sqlite3.Connection], T], *, deleted: bool = False) -> T:
        """Runs ``work`` in the writer. ``deleted`` says that something may be garbage now.

        Raises what ``work`` raises, ResourceExhausted on a full disk."""
        result = await self.database.write(work, freeing=deleted)
        if self.collector is not None:
            self.collector.mutated(deleted=deleted)
        return result

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` on what is committed."""
        return self.database.read(work)

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Tells what was committed."""
        if self._publisher is not None:
            self._publisher.publish(namespace, topic, event)


def ensure_namespace(connection: sqlite3.Connection, namespace: str) -> None:
    """A namespace begins with the first record that is made in it."""
    connection.execute("INSERT OR IGNORE INTO namespaces VALUES (?, x'7b7d')", (namespace,))
