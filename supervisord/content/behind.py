"""How much waits for the disk, over all ingests together.

One ingest alone may have ``MOST_OF_ONE`` bytes waiting. Where all together have more than
``MOST_OF_ALL``, each waits at ``LEAST_OF_ONE``: everybody goes on, and a thousand clients before a
slow disk cost little more than ten.
"""

from __future__ import annotations

import threading

MOST_OF_ONE = 8 << 20
MOST_OF_ALL = 64 << 20
LEAST_OF_ONE = 512 << 10


class Behind:
    """Counted by ingests in any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.bytes = 0

    def add(self, size: int) -> None:
        """Negative for what has reached the disk."""
        with self._guard:
            self.bytes += size

    def allowance(self) -> int:
        """Bytes that one ingest may have waiting now."""
        return MOST_OF_ONE if self.bytes <= MOST_OF_ALL else LEAST_OF_ONE
