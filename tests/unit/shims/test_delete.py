"""The end of runc's containers: by hand where that is all of it, by runc where it is not."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from supervisord.linux import cgroups, mount
from supervisord.ttrpc.client import Client

from .conftest import CGROUP, NS, Shim, ShimRoom, eventually, needs_root

pytestmark = needs_root


class Spy:
    """A runc that notes how it is called."""

    def __init__(self, base: Path) -> None:
        self._calls = base / "calls"
        (base / "bin").mkdir()
        self.path = base / "bin" / "runc"
        self.path.write_text(f'#!/bin/sh\necho "$*" >> {self._calls}\nexec runc "$@"\n')
        self.path.chmod(0o755)

    @property
    def deletes(self) -> int:
        return self._calls.read_text().count(" delete ")


def groups(id: str) -> list[Path]:
    """The control groups that are there."""
    return [
        path
        for pattern in (f"{CGROUP}/{id}", f"*/{CGROUP}/{id}")
        for path in Path(cgroups.ROOT).glob(pattern)
    ]


async def ended(shims: ShimRoom, spy: Spy, id: str) -> Shim:
    """A container whose init has ended."""
    shim = await shims.shim(id, "/bin/sleep", "600", runtime=str(spy.path))
    await shim.create()
    await shim.start()
    assert groups(id)
    await shim.kill(9)
    assert await shim.wait() == 137
    return shim


def left(shims: ShimRoom, id: str) -> list[Path]:
    """All that a delete should have removed."""
    state = shims.base / "rt" / NS / id
    return [*groups(id), *([state] if state.exists() else [])]


async def test_nothing_is_left_and_no_process_was_needed(shims: ShimRoom) -> None:
    spy = Spy(shims.base)
    shim = await ended(shims, spy, "hand")
    controllers = [path.parents[1].name for path in groups("hand")]
    if not cgroups.is_unified():
        assert {"cpu", "devices", "freezer", "memory", "pids"} <= set(controllers)
    await shim.delete()
    assert left(shims, "hand") == []
    assert spy.deletes == 0
    assert not (shim.bundle / "rootfs" / "bin").exists()
    await shim.create()  # nothing hinders the next of this name
    await shim.start()
    await shim.kill(9)
    await shim.wait()
    await shim.delete()
    assert left(shims, "hand") == []
    assert spy.deletes == 0


@pytest.mark.parametrize("oddity", ["file", "group", "other", "intel", "rootless"])
async def test_what_is_not_as_expected_is_left_to_runc(shims: ShimRoom, oddity: str) -> None:
    spy = Spy(shims.base)
    shim = await ended(shims, spy, oddity)
    state = shims.base / "rt" / NS / oddity / "state.json"
    text = state.read_text()
    match oddity:
        case "file":
            (state.parent / "unknown").touch()
        case "group":
            (groups(oddity)[0] / "below").mkdir()
        case "other":
            state.write_text(text.replace('"init_process_pid":', '"init_process_pid":1'))
        case "intel":
            state.write_text(text.replace('"intel_rdt_path":""', '"intel_rdt_path":"/nowhere/x"'))
        case _:
            state.write_text(text.replace('"rootless":false', '"rootless":true'))
    if oddity != "file" and oddity != "group":
        assert state.read_text() != text
    await shim.delete()
    assert spy.deletes == 1
    assert left(shims, oddity) == []


async def test_without_a_pid_namespace_runc_ends_what_is_left(shims: ShimRoom) -> None:
    spy = Spy(shims.base)
    namespaces = [{"type": kind} for kind in ("ipc", "uts", "mount", "network")]
    shim = await shims.shim("shared", "/bin/true", runtime=str(spy.path), namespaces=namespaces)
    await shim.create()
    await shim.start()
    await shim.wait()
    await shim.delete()
    assert spy.deletes == 1
    assert left(shims, "shared") == []


async def test_what_was_never_started_is_left_to_runc(shims: ShimRoom) -> None:
    spy = Spy(shims.base)
    shim = await shims.shim("unborn", "/bin/true", runtime=str(spy.path))
    await shim.create()
    await shim.delete()
    assert spy.deletes == 1
    assert left(shims, "unborn") == []


@pytest.mark.parametrize("gone", ["bundle", "socket"])
async def test_a_shim_that_nobody_can_reach_ends_after_its_container(
    shims: ShimRoom, gone: str
) -> None:
    shim = await shims.shim(gone, "/bin/sleep", "600", arguments={"idle_seconds": 0.05})
    pid = await shim.create()
    await shim.start()
    shim.client.close()
    if gone == "bundle":
        mount.unmount_all(str(shim.bundle / "rootfs"))
        shutil.rmtree(shim.bundle)
    else:
        Path(shim.address).unlink()
    await asyncio.sleep(0.3)
    assert alive(shim.pid)  # it holds a container that runs
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not alive(shim.pid))
    assert left(shims, gone) == []


async def test_a_shim_that_can_be_reached_keeps_its_exit(shims: ShimRoom) -> None:
    shim = await shims.shim("kept", "/bin/sleep", "600", arguments={"idle_seconds": 0.05})
    pid = await shim.create()
    await shim.start()
    shim.client.close()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.4)
    assert alive(shim.pid)
    shim.client = await Client.connect(shim.address)
    assert await shim.wait() == 137


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
