"""A daemon under test: started, killed, restarted and cleaned up after, whoever made it.

Owns the processes, the temporary root and what a daemon may leave behind (shims, mounts, cgroups).
Tests get one of two: Debian's containerd, the reference, and ours. Every process of either is
known by a token in its environment or by the folder in its command line, never by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

TOKEN_VARIABLE = "SUPERVISORD_TEST_DAEMON"  # noqa: S105 - a marker, no secret
REPOSITORY = Path(__file__).resolve().parents[2]
CGROUP_ROOT = Path("/sys/fs/cgroup")
DISABLED_PLUGINS = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
)
# Tests keep content that nothing refers to: collections take so small a share of the time that the
# next one is due long after the tests, unless it is asked for.
COLLECT_ON_REQUEST = '[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0.0000001\n'


class Daemon:
    """One daemon on its own folder. ``start`` returns when it serves; ``close`` leaves nothing."""

    name = ""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="d-"))
        self.root = self.base / "root"
        self.state = self.base / "state"
        self.address = str(self.base / "d.sock")
        self.log = self.base / "log"
        self.token = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None
        self.started_in = 0.0
        self.more = ""  # further text for its configuration file
        self.environment: dict[str, str] = {}  # further variables of its environment

    @property
    def ours(self) -> bool:
        """True for the daemon of this project."""
        return self.name == "supervisord"

    @property
    def pid(self) -> int:
        """The pid of the daemon's main process."""
        assert self.process is not None, "the daemon does not run"
        return self.process.pid

    def command(self) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def start(self, timeout: float = 15.0) -> None:
        """Starts it, and waits until it answers on its socket."""
        environment = {**os.environ, **self.environment, TOKEN_VARIABLE: self.token}
        begin = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() - begin > timeout:
                raise AssertionError(f"{self.name} did not start:\n{self.log_tail()}")
            time.sleep(0.02)
        self.started_in = time.monotonic() - begin

    def _answers(self) -> bool:
        if not os.path.exists(self.address):
            return False
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            call: Any = channel.unary_unary("/containerd.services.version.v1.Version/Version")
            try:
                call(b"", timeout=2)
            except grpc.RpcError:
                return False
        return True

    def kill(self) -> None:
        """``kill -9`` of the daemon's main process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def stop(self, timeout: float = 15.0) -> int:
        """Asks it to stop with SIGTERM; answers its exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} ignored SIGTERM:\n{self.log_tail()}") from None
        finally:
            self.process = None
        return status

    def restart(self) -> None:
        """``kill -9`` and a new start on the same folders."""
        self.kill()
        self.start()

    def log_tail(self, size: int = 2500) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def processes(self) -> list[int]:
        """Pids of everything that the daemon started and that is alive. The fork that waits to
        become the next shim is left out: there is another one after each shim."""
        return sorted(
            pid
            for pid in all_pids()
            if pid != os.getpid()
            and (self.token in _read(f"/proc/{pid}/environ") or str(self.base) in command_line(pid))
            and not _read(f"/proc/{pid}/comm").startswith("supervisord-spa")
        )

    def mounts(self) -> list[str]:
        """Mount points below its folder, innermost first."""
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        return [point for point in reversed(points) if point.startswith(f"{self.base}/")]

    def close(self) -> None:
        """Ends it and everything it left; the folder is removed."""
        with contextlib.suppress(AssertionError):
            if self.process is not None:
                self.stop()
        for _ in range(50):
            left = self.processes()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for point in self.mounts():
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)


class Containerd(Daemon):
    """Debian's containerd, with the plugins disabled that these tests do not use."""

    name = "containerd"

    def command(self) -> list[str]:
        config = self.base / "config.toml"
        disabled = ", ".join(f'"{name}"' for name in DISABLED_PLUGINS)
        config.write_text(
            f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
            f'disabled_plugins = [{disabled}]\n[grpc]\naddress = "{self.address}"\n'
            f"{COLLECT_ON_REQUEST}{self.more}"
        )
        return ["containerd", "--config", str(config), "--log-level", "warn"]


class Supervisord(Daemon):
    """Ours, from this source tree."""

    name = "supervisord"
    disabled: Sequence[str] = ()

    def command(self) -> list[str]:
        config = self.base / "config.toml"
        disabled = json.dumps(list(self.disabled))
        config.write_text(
            f"version = 3\ndisabled_plugins = {disabled}\n{COLLECT_ON_REQUEST}{self.more}"
        )
        return [
            sys.executable,
            "-m",
            "supervisord.daemon.main",
            "--config",
            str(config),
            "--root",
            str(self.root),
            "--state",
            str(self.state),
            "--address",
            self.address,
        ]


KINDS: dict[str, type[Daemon]] = {kind.name: kind for kind in (Containerd, Supervisord)}


@contextlib.contextmanager
def running(
    name: str, more: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A started daemon of that name, closed at the end of the block."""
    daemon = KINDS[name]()
    daemon.more = more
    daemon.environment.update(environment or {})
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def all_pids() -> list[int]:
    """Every pid in /proc."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def command_line(pid: int) -> str:
    """The command line of a process with spaces between its words; "" once it is gone."""
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def alive(pid: int) -> bool:
    """True while the process exists and is no zombie."""
    stat = _read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def parent_of(pid: int) -> int:
    """The pid of its parent."""
    return int(_read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])


def cgroup_folders(path: str) -> list[Path]:
    """The folders of one cgroup path (``/ns/id``) in every mounted hierarchy."""
    relative = path.strip("/")
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        candidates = [CGROUP_ROOT / relative]
    else:
        candidates = [folder / relative for folder in sorted(CGROUP_ROOT.iterdir())]
    return [folder for folder in candidates if folder.is_dir()]


def remove_cgroups(path: str) -> None:
    """Kills what is in a cgroup path and removes its folders, children first."""
    for top in cgroup_folders(path):
        for folder in sorted((p for p in [top, *top.rglob("*")] if p.is_dir()), reverse=True):
            for line in _read(str(folder / "cgroup.procs")).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)
            for _ in range(40):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.025)
