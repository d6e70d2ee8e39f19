"""Workers: forks of the zygote, each made for one shim or one layer.

The zygote is a small warm interpreter. A request carries JSON arguments and file descriptors;
the fork is not the daemon's child (it belongs to init) and lives as long as its work. What it has
to say it says through the descriptors that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class WorkerSpawner(Protocol):
    """Forks workers."""

    async def spawn(
        self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
    ) -> int:
        """Forks a worker of a kind (``shim``, ``unpack``) and answers its pid. The descriptors
        are duplicated into the worker; the caller keeps and closes its own.

        Raises Unavailable if no zygote could be reached or restarted."""
        ...


class ShimSpawner(WorkerSpawner, Protocol):
    """Forks shims too, and keeps the next one ready."""

    def replenish(self, kind: str) -> None:
        """Says that the work of the last worker of a kind has calmed down: now is the time to
        make ready for the next one."""
        ...
