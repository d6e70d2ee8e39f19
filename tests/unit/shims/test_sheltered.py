"""crun is executed where it sees that nobody can write to it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shims import sheltered
from shims.command import Streams, spawn
from shims.loop import Loop
from shims.reaper import Reaper
from shims.runtime import Runtime

from .conftest import eventually, needs_root
from .runtimes import needs_crun

pytestmark = needs_root


def starts(binary: str, program: str, folder: Path) -> int:
    """How often the program is loaded, itself by itself included, until it ends."""
    trace = folder / "trace"
    with trace.open("w") as file:
        environment = {"PATH": "/usr/bin", "LD_DEBUG": "files"}
        streams = Streams(stderr=file.fileno())
        pid = spawn([binary, "--version"], streams, environment=environment, program=program)
    assert os.waitpid(pid, 0)[1] == 0
    return trace.read_text().count("initialize program:")


@needs_crun
@pytest.mark.parametrize("binary", ["crun", "/usr/bin/crun"])
def test_crun_starts_once_and_not_twice(tmp_path: Path, binary: str) -> None:
    fd = sheltered.open(binary)
    try:
        assert starts(binary, f"/proc/self/fd/{fd}", tmp_path) == 1
    finally:
        os.close(fd)
    assert starts(binary, "", tmp_path) == 2


@pytest.mark.parametrize("name", ["crun", "other"])
async def test_what_is_named_crun_is_executed_so(tmp_path: Path, name: str) -> None:
    binary = tmp_path / name
    shutil.copy("/bin/sleep", binary)
    loop = Loop()
    reaper = Reaper(loop)
    fds = len(os.listdir("/proc/self/fd"))
    try:
        runtime = Runtime(loop, reaper, str(binary), str(tmp_path), str(tmp_path))
        pid = runtime._spawn([str(binary), "600"], Streams())
        try:
            await eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() != b"")
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert command[:2] == [str(binary), "600"]
            read_only = bool(os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY)
            assert read_only == (name == "crun")
            assert len(os.listdir("/proc/self/fd")) == fds
        finally:
            os.kill(pid, 9)
            await asyncio.to_thread(os.waitpid, pid, 0)
    finally:
        reaper.close()
        loop.close()


def script(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.mark.parametrize("make", [script, Path.mkdir, lambda _: None])
def test_other_things_are_executed_by_their_paths(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "crun")
    assert sheltered.open(str(tmp_path / "crun")) == -1


def test_a_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "crun"
    shutil.copy("/bin/true", program)
    monkeypatch.setenv("PATH", f"relative:/absent:{tmp_path}:/usr/bin")
    fd = sheltered.open("crun")
    assert os.fstat(fd).st_ino == program.stat().st_ino
    os.close(fd)
    monkeypatch.setenv("PATH", "/absent")
    assert sheltered.open("crun") == -1


def test_a_new_version_is_seen_at_once(tmp_path: Path) -> None:
    program, new = tmp_path / "crun", tmp_path / "new"
    shutil.copy("/bin/true", program)
    shutil.copy("/bin/false", new)
    os.close(sheltered.open(str(program)))
    new.rename(program)
    fd = sheltered.open(str(program))
    pid = spawn([str(program)], Streams(), program=f"/proc/self/fd/{fd}")
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
