"""Moves between control groups, which the kernel lets begin slowly.

The first move after a quiet moment waits for a grace period of RCU (``cgroup_threadgroup_rwsem``
is a per-CPU semaphore, whose writers must see all readers leave the fast path): 9 ms on a small
machine. Moves within the next grace period do not wait. So a process that moves nowhere makes the
way free for the one that is moved right after. Blocking.
"""

from __future__ import annotations

import os

from supervisord.contracts.errors import NotFound

from . import cgroups


def own_procs(root: str = cgroups.ROOT, proc: str = "/proc", pid: str = "self") -> str:
    """The ``cgroup.procs`` of the group that this process is in, of any hierarchy that is
    mounted. Raises NotFound."""
    text = cgroups.read(f"{proc}/{pid}/cgroup") or ""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        name = names.split(",")[0].removeprefix("name=")
        for folder in (f"{root}/{name}", root) if name else (root, f"{root}/unified"):
            file = f"{folder}{path.rstrip('/')}/cgroup.procs"
            if os.access(file, os.W_OK):
                return file
    raise NotFound("control group of this process: not found")


def move_nowhere(procs: str) -> None:
    """Moves this process to where it is: ``procs`` is its ``own_procs``. Raises OSError."""
    fd = os.open(procs, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % os.getpid())
    finally:
        os.close(fd)
