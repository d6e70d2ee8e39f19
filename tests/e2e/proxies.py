"""Snapshotters in processes of their own, for the daemons that the tests give them to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conformance.ctr import Ctr
from tests.conformance.daemons import REPOSITORY, Daemon, remove_cgroups
from tests.conformance.fixtures import IMAGE

NAMESPACE = f"sdproxy-{uuid.uuid4().hex[:8]}"


class Proxy:
    """``python -m snapshotters.serve`` in a folder of its own, or another command."""

    def __init__(self, snapshotter: str, *arguments: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="p-"))
        self.address = f"{self.base}/s.sock"
        self.snapshotter = snapshotter
        self.arguments = arguments
        self.log = self.base / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        return (
            *(sys.executable, "-m", "snapshotters.serve", "--snapshotter", self.snapshotter),
            *("--root", f"{self.base}/root", "--address", self.address, *self.arguments),
        )

    def table(self, name: str, *more: str) -> str:
        """Its part of a daemon's configuration."""
        lines = [f"[proxy_plugins.{name}]", 'type = "snapshot"', f'address = "{self.address}"']
        return "\n".join([*lines, *more, ""])

    def start(self, seconds: float = 20.0) -> None:
        """Returns when somebody answers on the socket."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY
            )
        end = time.monotonic() + seconds
        while not self._answers():
            late = time.monotonic() > end
            assert self.process.poll() is None and not late, self.log.read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.address)
            except OSError:
                return False
        return True

    def send(self, number: int) -> None:
        """A signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; the socket stays behind."""
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)
        self.process = None

    def stop(self) -> int:
        """SIGTERM; answers the exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(15)
        self.process = None
        return status

    def close(self) -> None:
        """Ends it, whatever it does, and removes its folder with what is mounted there."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.kill()
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        for point in reversed(points):
            if point.startswith(f"{self.base}/"):
                subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)


class Stargz(Proxy):
    """containerd's stargz-snapshotter, where it is installed."""

    program = shutil.which("containerd-stargz-grpc")
    client = shutil.which("ctr-remote")

    def __init__(self) -> None:
        super().__init__("stargz")

    def command(self) -> Sequence[str]:
        return (
            *(str(self.program), "--root", f"{self.base}/root", "--address", self.address),
            *("--config", os.devnull),
        )


@contextmanager
def served(snapshotter: str, *arguments: str) -> Iterator[Proxy]:
    """A started one of ours, or Stargz by its name."""
    proxy = Stargz() if snapshotter == "stargz" else Proxy(snapshotter, *arguments)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.close()


@contextmanager
def running(daemon: Daemon, config: str) -> Iterator[Ctr]:
    """The daemon with that configuration, and ``ctr`` in a namespace that is emptied."""
    daemon.more = config
    try:
        daemon.start()
        yield Ctr(daemon.address, NAMESPACE)
    finally:
        daemon.close()
        remove_cgroups(f"/{NAMESPACE}")


def run_and_remove(ctr: Ctr, snapshotter: str, image_tar: Path) -> None:
    """Imports the image with the snapshotter, runs containers on it, and removes everything."""
    words = ["--snapshotter", snapshotter]
    ctr("images", "import", *words, str(image_tar))
    kinds = {row[0]: row[-1] for row in ctr("snapshots", *words, "ls").rows()}
    assert len(kinds) == 3
    assert set(kinds.values()) == {"Committed"}
    script = "echo in >/new && cat /new && rm /etc/passwd && ls /etc"
    assert ctr("run", "--rm", *words, IMAGE, "first", "sh", "-c", script).out.startswith("in\n")
    ctr("run", *words, IMAGE, "kept", "sh", "-c", "echo kept >/file; rm /etc/passwd")
    assert "Active" in ctr("snapshots", *words, "info", "kept").out
    usage = ctr("snapshots", *words, "usage", "-b", "kept").rows()[0]
    assert int(usage[2]) >= 2
    assert ctr("run", "--rm", *words, IMAGE, "again", "cat", "/etc/passwd").out.startswith("root:")
    ctr("containers", "rm", "kept")
    ctr("images", "rm", "--sync", IMAGE)
    assert ctr("snapshots", *words, "ls").rows() == []
