"""Watches a container's memory for out-of-memory kills, from its creation to its end."""

from __future__ import annotations

from collections.abc import Callable

from supervisord.linux import oom
from supervisord.linux.cgroups import Cgroup

from .loop import READ, Loop


class Oom:
    """Calls back once for each report of the kernel that tells of kills."""

    def __init__(self, loop: Loop, cgroup: Cgroup, told: Callable[[], None]) -> None:
        """Raises NotFound where there is no memory controller."""
        self._loop = loop
        self._told = told
        self._watch = oom.watch(cgroup)
        loop.watch(self._watch.fileno(), READ, self._ready)

    def close(self) -> None:
        """Tells what is there yet, and ends: a kill is told before the exit that it caused."""
        self._ready(0)
        self._loop.unwatch(self._watch.fileno())
        self._watch.close()

    def _ready(self, _: int) -> None:
        if self._watch.take():
            self._told()
