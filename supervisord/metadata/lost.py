"""Remembers that records are lost, so that what they stood for is not taken for rubbish.

Where the database is new, restored from a backup or pieced together, blobs and snapshots without a
record are not what a crash has left, but somebody's. A file beside the database says so. While it
is there recovery leaves them alone, and a repair, which gives them records again, removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = "records-lost"


class Lost:
    """The file beside one metadata database."""

    def __init__(self, root: Path) -> None:
        self.path = root / _NAME

    def known(self) -> bool:
        """Whether records are known to be lost."""
        return self.path.exists()

    def note(self, reason: str) -> None:
        """Remembers it, durably. Raises OSError."""
        with self.path.open("a") as file:
            file.write(f"{reason}\n")
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def complain(self) -> None:
        """Says what is to be done, in the log."""
        with contextlib.suppress(OSError):
            log.error(
                "records were lost (%s): blobs and snapshots without one are kept, and take up "
                "room, until 'sctl check --repair' has given them records again",
                self.path.read_text().strip().replace("\n", "; "),
            )

    async def found_again(self) -> None:
        """After a repair: recovery may remove orphans from the next start on."""
        await asyncio.to_thread(self.path.unlink, missing_ok=True)
