"""What a container may leave behind, anywhere: looked for when nothing of it should be there."""

from __future__ import annotations

import time
from pathlib import Path

from tests.conformance.daemons import Daemon, cgroup_folders

PLUGIN = "io.containerd.runtime.v2.task"
"""The folder below state of what runs, in both daemons."""

CONTAINERD_RUNC = Path("/run/containerd/runc")


class Residue:
    """Compares a daemon with how it was when this was made. Nothing but the containers that are
    asked about may have come and gone in between."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        self._daemon = daemon
        self._namespace = namespace
        self._before = set(self._others())

    def of(self, *ids: str) -> list[str]:
        """What is left of containers, a line each."""
        daemon, namespace = self._daemon, self._namespace
        below = daemon.state / PLUGIN
        folders = [below / namespace, below / "tasks" / namespace, below / "oci" / namespace]
        folders.append(CONTAINERD_RUNC / namespace)
        left = [line for line in self._others() if line not in self._before]
        for id in ids:
            left += [f"cgroup {path}" for path in cgroup_folders(f"/{namespace}/{id}")]
            left += [f"folder {path / id}" for path in folders if (path / id).exists()]
        return left

    def _others(self) -> list[str]:
        """What cannot be told apart by id: processes, mounts, sockets and rubbish."""
        daemon = self._daemon
        found = [f"process {pid}" for pid in daemon.processes() if not self._is_daemon(pid)]
        found += [f"mount {point}" for point in daemon.mounts()]
        found += [f"socket {path}" for path in (daemon.state / PLUGIN / "s").glob("*")]
        found += [f"trash {path}" for path in (daemon.state / PLUGIN / "trash").glob("*")]
        return found

    def _is_daemon(self, pid: int) -> bool:
        """The daemon itself and its zygotes, which are others after a restart."""
        if pid == self._daemon.pid:
            return True
        try:
            return Path(f"/proc/{pid}/comm").read_text().startswith("supervisord-zyg")
        except OSError:
            return False

    def expect_none(self, *ids: str, seconds: float = 10) -> None:
        """Waits until nothing is left of them."""
        deadline = time.monotonic() + seconds
        while left := self.of(*ids):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
