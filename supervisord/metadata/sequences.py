"""Numbers that never come twice: for ingest files and for snapshots' keys in their backends.

A block is reserved in the database and then given out from memory, so that most numbers cost no
write. A crash wastes the rest of the block. Numbers from ``first`` on were given out by this
process, the ones before it by earlier ones: recovery leaves what is newer alone.
"""

from __future__ import annotations

import asyncio
import sqlite3

from supervisord.sqlite.database import Database

_BLOCK = 4096


class Sequence:
    """One named sequence. Make it with ``open``."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._lock = asyncio.Lock()
        self._next = 0
        self._end = 0
        self.first = 0

    @classmethod
    async def open(cls, database: Database, name: str, *, above: int = 0) -> Sequence:
        """Reserves the first block; all its numbers are higher than ``above``, for a database that
        may have forgotten how far it was."""
        sequence = cls(database, name)
        await sequence._reserve(above)
        sequence.first = sequence._next
        return sequence

    async def next(self) -> int:
        """The next number. Raises ResourceExhausted if a block is used up on a full disk."""
        if self._next == self._end:
            async with self._lock:
                if self._next == self._end:
                    await self._reserve()
        number = self._next
        self._next += 1
        return number

    async def _reserve(self, above: int = 0) -> None:
        def reserve(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT INTO sequences VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET next = max(next, ?) + ?",
                (self._name, above + 1 + _BLOCK, above + 1, _BLOCK),
            )
            (end,) = connection.execute(
                "SELECT next FROM sequences WHERE name = ?", (self._name,)
            ).fetchone()
            return int(end)

        end = await self._database.write(reserve, freeing=True)
        self._next, self._end = end - _BLOCK, end
