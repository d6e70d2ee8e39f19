"""Lets the kernel know ahead that a process will be moved between control groups.

An OCI runtime moves what it has made into the container's groups some 10 ms after it was asked to;
the kernel needs about as long before it moves anything (``linux.migration``). Begun together, both
are done at the same time. The manager gives it with each create and exec; nothing ever waits
for it, and where it cannot be given all is as before.
"""

from __future__ import annotations

import asyncio
import logging

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import NotFound
from supervisord.linux import migration

log = logging.getLogger(__name__)


class Forewarning:
    """One for the daemon: the kernel's state is that of the whole machine."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._giving = False
        self._useless = False

    def give(self) -> None:
        """Begins, unless that has been done and has not ended."""
        if self._giving or self._useless:
            return
        try:
            self._owner.spawn(self._give(), "forewarning")
        except RuntimeError:  # the daemon is stopping: what was asked for says so itself
            return
        self._giving = True

    async def _give(self) -> None:
        try:
            await asyncio.to_thread(_move)
        except (OSError, NotFound) as error:
            self._useless = True
            log.info("processes are moved without forewarning: %s", error)
        finally:
            self._giving = False


def _move() -> None:
    # Looked up each time: somebody may have moved this process.
    migration.move_nowhere(migration.own_procs())
