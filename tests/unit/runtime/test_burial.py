"""What is ended of a dead shim: its commands, and never what only mentions the bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from supervisord.linux import process
from supervisord.runtime import burial
from supervisord.runtime.bundle import Bundle

from .conftest import until

Start: TypeAlias = Callable[..., int]

_SLEEP = "import time; time.sleep(600)"
_ORPHAN = """
import os, sys
pid = os.fork()
if pid:
    os.write(1, b"%d" % pid)
    os._exit(0)
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that sleeps, with any arguments, as a child of ours or as an orphan."""
    children: list[subprocess.Popen[bytes]] = []
    orphans: list[tuple[int, int]] = []

    def start(*arguments: str, orphan: bool = False) -> int:
        command = [sys.executable, "-c", _SLEEP, *arguments]
        if not orphan:
            children.append(subprocess.Popen(command))
            return children[-1].pid
        pid = int(subprocess.check_output([sys.executable, "-c", _ORPHAN, *command]))
        orphans.append((pid, process.start_time(pid) or 0))
        return pid

    yield start
    for child in children:
        child.kill()
        child.wait()
    for pid, started in orphans:
        if process.alive(pid, started):
            os.kill(pid, signal.SIGKILL)


async def until_it_sleeps(pid: int) -> None:
    """Its command line is its own by then."""
    line = Path("/proc", str(pid), "cmdline")
    assert await until(lambda: _SLEEP.encode() in line.read_bytes().split(b"\0")[2:3])


@pytest.mark.blocks("processes are started for the test itself")
async def test_only_orphaned_commands_of_the_shim_are_ended(tmp_path: Path, start: Start) -> None:
    bundle = Bundle("ns", "web", str(tmp_path / "web"))
    Path(bundle.path).mkdir()
    root = str(tmp_path / "runc")
    call = ["--root", root, "--log", f"{bundle.path}/log-7.json", "--log-format", "json", "create"]
    other = ["--root", root, "--log", f"{bundle.path}-2/log-7.json", "create", bundle.path]
    command = start(*call, orphan=True)
    bystanders = [
        start(f"{bundle.path}/shim.log"),  # a reader of the log
        start(f"{bundle.path}/shim.log", orphan=True),
        start(bundle.path, orphan=True),
        start("--root", root, "delete", "--bundle", bundle.path, orphan=True),
        start(*other, orphan=True),
        start(*call),  # somebody who tries by hand what the shim had done
    ]
    for pid in (command, *bystanders):
        await until_it_sleeps(pid)
    undertaker = burial.Burial(None, None)  # type: ignore[arg-type]
    await undertaker.end_commands(bundle)
    assert process.start_time(command) is not None  # it had not noted any runtime
    notes = {"binary": "runc", "root": root}
    Path(bundle.path, "runtime.json").write_text(json.dumps(notes))
    await undertaker.end_commands(bundle)
    assert await until(lambda: process.start_time(command) is None)
    assert [pid for pid in bystanders if process.start_time(pid) is None] == []


def test_what_a_command_has_forked_goes_with_it() -> None:
    found = {10: (1, -1), 11: (10, -1), 12: (11, -1), 20: (99, -1), 21: (20, -1)}
    first = {pid: burial._first_parent(pid, found) for pid in found}
    assert first == {10: 1, 11: 1, 12: 1, 20: 99, 21: 99}


@pytest.mark.blocks("processes are started for the test itself")
async def test_the_init_that_only_the_runtime_has_told_of(tmp_path: Path, start: Start) -> None:
    bundle = Bundle("ns", "web", str(tmp_path))
    assert bundle.read_init() == (0, 0)
    pid = start()
    file = tmp_path / "init.pid"
    file.write_text(str(pid))
    assert bundle.read_init() == (pid, process.start_time(pid))
    os.utime(file, (0, os.stat(file).st_mtime - 3600))
    assert bundle.read_init() == (0, 0)  # a younger process with its number
    file.write_text("garbage")
    assert bundle.read_init() == (0, 0)
