"""Starts and stops the two daemons that are compared, each on a temporary root.

Their state is in memory, as it is by default: ``/run`` is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import grpc
from google.protobuf.empty_pb2 import Empty

from protos.containerd.services.version.v1.version_pb2_grpc import VersionStub

_PATIENCE = 30.0
_MEMORY = "/dev/shm"


class StartFailed(Exception):
    """The daemon ended, or did not answer in time; the text has the end of its log."""


class Daemon:
    """A running daemon: its name, its socket, its pid, and how long it took to answer."""

    def __init__(
        self, name: str, folder: Path, command: list[str], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.address = str(folder / "sock")
        self.log = folder / "log"
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.perf_counter() - began

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            if Path(self.address).exists():
                with grpc.insecure_channel(f"unix:{self.address}") as channel:
                    try:
                        VersionStub(channel).Version(Empty(), timeout=2)
                        return
                    except grpc.RpcError:
                        pass
            time.sleep(0.01)
        raise StartFailed(f"{self.name} does not answer:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def rss(self) -> int:
        """Resident memory of the daemon's own process, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """Ends it: SIGTERM, and SIGKILL after ten seconds."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _containerd(folder: Path, state: Path) -> list[str]:
    binary = shutil.which("containerd")
    if binary is None:
        raise StartFailed("there is no containerd on the path")
    config = folder / "config.toml"
    config.write_text(
        f"""version = 2
root = "{folder}/root"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]

[grpc]
  address = "{folder}/sock"
"""
    )
    return [binary, "--config", str(config), "--log-level", "warn"]


def _supervisord(folder: Path, state: Path) -> list[str]:
    paths = ["--root", f"{folder}/root", "--state", str(state)]
    address = ["--address", f"{folder}/sock", "--log-level", "warn"]
    return [str(Path(sys.executable).with_name("supervisord")), *paths, *address]


COMMANDS = {"containerd": _containerd, "supervisord": _supervisord}


@contextmanager
def running(
    name: str,
    base: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
    *,
    in_memory: bool = True,
    command: str = "",
) -> Iterator[Daemon]:
    """A daemon of that name on a root below ``base``, with these variables besides our own, stopped
    at the end. Its state is below ``base`` as well unless it is ``in_memory``; ``command`` tells
    which of ``COMMANDS`` it is where its name is another."""
    folder = base / name
    folder.mkdir()
    memory = _MEMORY if in_memory and Path(_MEMORY).is_dir() else folder
    with tempfile.TemporaryDirectory(prefix="sv-bench-", dir=memory) as state:
        words = COMMANDS[command or name](folder, Path(state))
        daemon = Daemon(name, folder, words, environment)
        try:
            yield daemon
        finally:
            daemon.stop()
