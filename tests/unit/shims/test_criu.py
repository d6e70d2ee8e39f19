"""Whether checkpoints are possible, asked of stand-ins for CRIU and the runtimes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shims import criu
from shims import reaper as reapers
from shims.loop import Loop
from shims.reaper import Reaper
from shims.runtime import Runtime
from supervisord.contracts.errors import FailedPrecondition

LOOKS_GOOD = "echo Looks good."
OLD_KERNEL = """
echo 'Error (criu/util.c:642): exited, status=1' >&2
echo 'Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable' >&2
echo 'Error (criu/crtools.c:260): Could not initialize kernel features detection.' >&2
exit 1"""
WITH = "echo 'crun version 1.14'; echo '+SECCOMP +EBPF +CRIU +YAJL'"
WITHOUT = "echo 'crun version 1.8.1'; echo '+SECCOMP +EBPF +YAJL'"


class Host:
    """A search path with nothing in it but what a test puts there."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.folder = folder
        self.runtime = runtime

    def has(self, **programs: str) -> None:
        for name, script in programs.items():
            path = self.folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    def by(self, binary: str) -> Runtime:
        known = self.runtime
        return Runtime(known.loop, known.reaper, binary, known.root, known.bundle)

    def require(self, binary: str) -> None:
        loop = self.runtime.loop
        loop.run_until(loop.spawn(criu.require(self.by(binary)), "require"))

    def able(self, binary: str) -> str:
        loop = self.runtime.loop
        return loop.run_until(loop.spawn(criu.able(self.by(binary)), "able"))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    before = signal.getsignal(signal.SIGCHLD)
    reapers.catch_signal()
    loop = Loop()
    reaper = Reaper(loop)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    yield Host(folder, Runtime(loop, reaper, "runc", str(tmp_path), str(tmp_path)))
    reaper.close()
    loop.close()
    signal.signal(signal.SIGCHLD, before)


def test_where_it_works(host: Host) -> None:
    host.has(criu=LOOKS_GOOD, crun=WITH, runc="exit 1")
    host.require("runc")
    host.require("crun")
    assert host.able("crun") == "crun"


def test_without_criu(host: Host) -> None:
    host.has(runc="exit 1")
    with pytest.raises(FailedPrecondition, match="the program criu, which is not installed"):
        host.require("runc")


def test_a_runtime_without_it(host: Host) -> None:
    host.has(criu=LOOKS_GOOD, crun=WITHOUT)
    with pytest.raises(FailedPrecondition, match=r"crun was built without CRIU: .*runc"):
        host.require("crun")
    assert host.able("crun") == "crun"
    host.has(runc="exit 1")
    assert host.able("crun") == "runc"
    assert host.able(f"{host.folder}/crun") == "runc"
    assert host.able("runc") == "runc"


def test_a_kernel_that_cannot(host: Host) -> None:
    host.has(criu=OLD_KERNEL)
    told = r"this kernel cannot checkpoint or restore: criu check: vdso: Failed .*; Could not"
    with pytest.raises(FailedPrecondition, match=told):
        host.require("runc")


def test_a_check_that_says_nothing(host: Host) -> None:
    host.has(criu="exit 3")
    with pytest.raises(FailedPrecondition, match="criu check: it failed without a word"):
        host.require("runc")


def test_sandboxes_have_checkpoints_of_their_own(host: Host) -> None:
    assert shutil.which("criu") is None
    host.require("runsc")
    assert host.able("runsc") == "runsc"
