"""Docker's engine with its containers in the daemon under test: ``dockerd --containerd SOCKET``.

The engine keeps images and networks itself and drives tasks, execs and events through containerd's
Go client, so this is a client that we have no hand in.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conformance.daemons import Daemon, remove_cgroups

DOCKER = "/usr/bin/docker"  # of the same package as dockerd
IMAGE = "docker.io/test/busybox:1"
_START_SECONDS = 30.0

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None or not os.path.exists(DOCKER),
    reason="docker.io is not installed",
)


class Docker:
    """The ``docker`` command, at one engine."""

    def __init__(self, socket: Path) -> None:
        self._host = f"unix://{socket}"

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Runs a command and answers its output, standard error included where it fails."""
        done = subprocess.run(
            [DOCKER, "-H", self._host, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, f"docker {' '.join(arguments)}: {done.stderr}"
        return (done.stdout if status == 0 else done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def docker(
    daemon: Daemon,
    lasting: Callable[[], AbstractContextManager[None]],
    image_tar: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Docker]:
    """An engine of this module's own, with the image loaded."""
    folder = tmp_path_factory.mktemp("dockerd")
    short = Path("/tmp") / f"sd-{uuid.uuid4().hex[:8]}"
    short.mkdir(mode=0o700)
    name = f"sddocker-{uuid.uuid4().hex[:8]}"
    with (folder / "dockerd.log").open("wb") as log, lasting():
        engine = subprocess.Popen(
            [
                "dockerd",
                *("--containerd", daemon.address, "--containerd-namespace", name),
                *("--containerd-plugins-namespace", f"{name}-plugins"),
                *("--data-root", str(folder / "data"), "--exec-root", str(short / "x")),
                *("--host", f"unix://{short / 's'}", "--pidfile", str(short / "pid")),
                *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
                *("--cgroup-parent", f"/{name}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            command = Docker(short / "s")
            _ready(engine, command, folder / "dockerd.log")
            archive = folder / "image.tar"
            subprocess.run(
                ["skopeo", "copy", f"oci-archive:{image_tar}", f"docker-archive:{archive}:{IMAGE}"],
                check=True,
                capture_output=True,
                timeout=60,
            )
            command("load", "-i", str(archive))
            yield command
            left = command("ps", "-aq").split()
            if left:
                command("rm", "-f", *left)
        finally:
            engine.send_signal(signal.SIGTERM)
            engine.wait(30)
            _unmount_below(short)
            _unmount_below(folder)
            remove_cgroups(f"/{name}")
            shutil.rmtree(short)


def _ready(engine: subprocess.Popen[bytes], docker: Docker, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            docker("version")
            return
        except AssertionError:
            assert engine.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)


def _unmount_below(folder: Path) -> None:
    with open("/proc/self/mounts") as mounts:
        below = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{folder}/")]
    for point in reversed(below):
        subprocess.run(["umount", "-l", point], check=True)


def test_runs_to_the_end_with_its_output_and_code(docker: Docker) -> None:
    assert docker("run", "--rm", "--network", "none", IMAGE, "echo", "from docker") == "from docker"
    docker("run", "--rm", "--network", "none", IMAGE, "sh", "-c", "exit 7", status=7)


def test_a_missing_command_is_127(docker: Docker) -> None:
    said = docker("run", "--rm", "--network", "none", IMAGE, "no-such-command", status=127)
    assert '"no-such-command": executable file not found' in said
    assert docker("ps", "-aq") == ""


def test_the_life_of_a_detached_container(docker: Docker) -> None:
    id = docker("run", "-d", "--name", "web", "--network", "none", IMAGE, "sleep", "600")
    try:
        assert docker("ps", "-q", "--no-trunc") == id
        assert docker("exec", "web", "echo", "inside") == "inside"
        docker("exec", "web", "sh", "-c", "exit 3", status=3)
        assert "sleep 600" in docker("top", "web")
        docker("pause", "web")
        assert docker("inspect", "-f", "{{.State.Status}}", "web") == "paused"
        docker("unpause", "web")
        assert "web" in docker("stats", "--no-stream", "web")
        docker("update", "--memory", "64m", "--memory-swap", "64m", "web")
        docker("stop", "-t", "0", "web")
        assert docker("inspect", "-f", "{{.State.ExitCode}}", "web") == "137"
        docker("start", "web")
        assert docker("inspect", "-f", "{{.State.Running}}", "web") == "true"
    finally:
        docker("rm", "-f", "web")


def test_many_lines_of_a_log(docker: Docker) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"
    said = docker("run", "--rm", "--network", "none", IMAGE, "sh", "-c", script)
    assert said.splitlines() == [f"line {number}" for number in range(5000)]
