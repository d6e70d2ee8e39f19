"""gVisor's ``runsc`` as the OCI runtime: containers whose processes the kernel does not know.

Debian's package has no shim of gVisor's own, so containers ask the runc shim for it by
``--runc-binary``. It runs with ptrace, without control groups and network: that needs nothing of
the machine but ptrace itself. Where even that fails when ``runsc`` is run by hand, there is nothing
to test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon, alive, parent_of
from tests.conformance.fixtures import IMAGE, Shop

RUNSC = shutil.which("runsc")
FLAGS = ("--platform=ptrace", "--network=none", "--ignore-cgroups")

pytestmark = pytest.mark.skipif(RUNSC is None, reason="runsc is not installed")


@pytest.fixture(scope="module")
def runsc() -> Iterator[str]:
    """A program that is ``runsc`` with the flags that let it run here."""
    folder = Path(tempfile.mkdtemp(prefix="gvisor-"))
    program = folder / "runsc-here"
    program.write_text(f'#!/bin/sh\nexec {RUNSC} {" ".join(FLAGS)} "$@"\n')
    program.chmod(0o755)
    reason = _by_hand(program, folder)
    if reason:
        shutil.rmtree(folder)
        pytest.skip(f"runsc does not run on this machine: {reason}")
    yield str(program)
    shutil.rmtree(folder)


def _by_hand(program: Path, folder: Path) -> str:
    """Why a container does not run without any daemon; "" where it does."""
    binaries = folder / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy("/bin/busybox", binaries / "true")
    spec = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount", "network")]},
    }
    (folder / "config.json").write_text(json.dumps(spec))
    id = f"trial-{folder.name}"
    done = subprocess.run(
        [program, "--root", folder / "state", "run", "--bundle", folder, id],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr.strip()[-300:] or f"status {done.returncode}" if done.returncode else ""


def run(ctr: Ctr, runsc: str, id: str, *arguments: str) -> None:
    ctr("run", "-d", "--runc-binary", runsc, IMAGE, id, *arguments)


def remove(ctr: Ctr, id: str) -> None:
    """Kills, deletes. A sandbox that has ended refuses a signal, unlike an ordinary container."""
    ctr("t", "kill", "-s", "SIGKILL", id)
    until(lambda: [id, "STOPPED"] in [[row[0], row[2]] for row in ctr("t", "ls").rows()])
    assert "exit code 137" in ctr("t", "delete", id).err
    ctr("c", "rm", id)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)


def test_output_and_exit_code_come_out_of_the_sandbox(shop: Shop, runsc: str, unique: str) -> None:
    script = "dmesg; echo err >&2; exit 42"
    result = shop.ctr(
        *("run", "--rm", "--runc-binary", runsc, shop.image, unique, "sh", "-c", script), code=42
    )
    assert "Starting gVisor" in result.out
    assert result.err == "err\n"
    assert shop.ctr("t", "ls").rows() == []


def test_a_life_with_execs(shop: Shop, runsc: str, unique: str) -> None:
    run(shop.ctr, runsc, unique, "sleep", "600")
    pid = shop.wire.tasks_by_id()[unique].pid
    result = shop.ctr(
        *("t", "exec", "--exec-id", "one", unique, "sh", "-c", "echo $((6*7)); exit 3"), code=3
    )
    assert result.out == "42\n"
    # The sandbox numbers its processes itself, and shows no other.
    assert [row[0] for row in shop.ctr("t", "ps", unique).rows()] == ["1"]
    shop.ctr("t", "pause", unique)
    assert shop.ctr("t", "ls").rows() == [[unique, str(pid), "PAUSED"]]
    shop.ctr("t", "resume", unique)
    shop.ctr("t", "kill", "-s", "SIGKILL", unique)
    assert shop.wire.wait(unique) == 137
    until(lambda: not alive(pid))
    assert shop.wire.delete_task(unique) == 137


def test_a_sandbox_whose_shim_dies(shop: Shop, runsc: str, unique: str) -> None:
    """containerd ends it. Ours gives it another shim."""
    run(shop.ctr, runsc, unique, "sleep", "600")
    pid = shop.wire.tasks_by_id()[unique].pid
    shim = parent_of(pid)
    with shop.wire.record() as recorder:
        os.kill(shim, signal.SIGKILL)
        if not shop.wire.ours:
            (event,) = recorder.expect("/tasks/exit")
            assert (event.container_id, event.exit_status) == (unique, 137)
    if shop.wire.ours:
        until(lambda: not alive(shim))
        exec = ("t", "exec", "--exec-id", "one", unique, "echo", "still")
        assert shop.ctr(*exec).out == "still\n"
        assert shop.wire.tasks_by_id()[unique].pid == pid
        remove(shop.ctr, unique)
    until(lambda: not alive(pid))
    if not shop.wire.ours:
        shop.wire.delete_container(unique)
    run(shop.ctr, runsc, unique + "x", "sleep", "600")
    remove(shop.ctr, unique + "x")


def test_a_sandbox_outlives_the_daemon(
    own_daemon: Daemon, runsc: str, image_tar: Path, unique: str
) -> None:
    ctr = Ctr(own_daemon.address, f"sdgvisor-{unique}")
    ctr("i", "import", str(image_tar))
    run(ctr, runsc, unique, "sleep", "600")
    own_daemon.restart()
    assert ctr("t", "exec", "--exec-id", "one", unique, "echo", "still").out == "still\n"
    remove(ctr, unique)
