"""Start and end of containers: by hand where that is all of it, by the runtime where it is not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from supervisord.contracts.errors import Error
from supervisord.linux import cgroups, mount
from supervisord.ttrpc.client import Client

from .conftest import CGROUP, NS, Shim, ShimRoom, eventually, needs_root
from .runtimes import Spy, both, has_groups, needs_crun

pytestmark = needs_root


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
    assert bool(groups(id)) == has_groups(spy.runtime)
    await shim.kill(9)
    assert await shim.wait() == 137
    return shim


def left(shims: ShimRoom, id: str) -> list[Path]:
    """All that a delete should have removed."""
    state = shims.base / "rt" / NS / id
    return [*groups(id), *([state] if state.exists() else [])]


@both
async def test_nothing_is_left_and_no_process_was_needed(shims: ShimRoom, runtime: str) -> None:
    spy = Spy(shims.base, runtime)
    shim = await ended(shims, spy, "hand")
    controllers = [path.parents[1].name for path in groups("hand")]
    if runtime == "runc" and not cgroups.is_unified():
        assert {"cpu", "devices", "freezer", "memory", "pids"} <= set(controllers)
    await shim.delete()
    assert left(shims, "hand") == []
    assert (spy.count("create"), spy.count("start"), spy.count("delete")) == (1, 0, 0)
    assert not (shim.bundle / "rootfs" / "bin").exists()
    await shim.create()  # nothing hinders the next of this name
    await shim.start()
    await shim.kill(9)
    await shim.wait()
    await shim.delete()
    assert left(shims, "hand") == []
    assert (spy.count("create"), spy.count("start"), spy.count("delete")) == (2, 0, 0)


@both
@pytest.mark.parametrize("kind", ["poststart", "poststop"])
async def test_hooks_are_for_the_runtime(shims: ShimRoom, runtime: str, kind: str) -> None:
    spy = Spy(shims.base, runtime)
    shim = await shims.shim("hooked", "/bin/sleep", "600", runtime=str(spy.path))
    content = json.loads((shim.bundle / "config.json").read_text())
    ran = shims.base / "ran"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {ran}"]}
    content["hooks"] = {kind: [hook]}
    (shim.bundle / "config.json").write_text(json.dumps(content))
    await shim.create()
    assert not (ran.exists() and runtime == "crun")  # runc runs its poststart hooks right away
    await shim.start()
    assert ran.exists() == (kind == "poststart")
    await shim.kill(9)
    await shim.wait()
    await shim.delete()
    assert json.loads(ran.read_text())["id"] == "hooked"
    assert spy.count("start") == (kind == "poststart")
    assert spy.count("delete") == (kind == "poststop")
    assert left(shims, "hooked") == []


@both
async def test_the_end_before_the_start_is_told_by_the_runtime(
    shims: ShimRoom, runtime: str
) -> None:
    spy = Spy(shims.base, runtime)
    shim = await shims.shim("early", "/bin/sleep", "600", runtime=str(spy.path))
    pid = await shim.create()
    os.kill(pid, signal.SIGSTOP)  # the shim is not told of its end in time
    os.kill(shim.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    starting = asyncio.create_task(shim.start())
    await eventually(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    os.kill(shim.pid, signal.SIGCONT)
    with pytest.raises(Error):
        await starting
    assert await shim.wait() == 137
    await shim.delete()
    assert left(shims, "early") == []


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
    assert spy.count("delete") == 1
    assert left(shims, oddity) == []


@needs_crun
@pytest.mark.parametrize("oddity", ["file", "pid", "scope", "intel"])
async def test_what_is_not_as_expected_is_left_to_crun(shims: ShimRoom, oddity: str) -> None:
    spy = Spy(shims.base, "crun")
    shim = await ended(shims, spy, oddity)
    status = shims.base / "rt" / NS / oddity / "status"
    content = json.loads(status.read_text())
    match oddity:
        case "file":
            (status.parent / "unknown").touch()
        case "pid":
            content["pid"] = (1 << 22) - 1  # of nobody
        case "scope":
            content["scope"] = "of systemd"
        case _:
            content["intelrdt"] = "more to remove"
    status.write_text(json.dumps(content))
    if oddity == "scope":  # which the real one would ask systemd for
        content["scope"] = ""
        replaced = json.dumps(content)
        spy.path.write_text(f"#!/bin/sh\necho '{replaced}' > {status}\n" + spy.path.read_text())
    await shim.delete()
    assert spy.count("delete") == 1
    assert left(shims, oddity) == []


@both
async def test_without_a_pid_namespace_the_runtime_ends_what_is_left(
    shims: ShimRoom, runtime: str
) -> None:
    spy = Spy(shims.base, runtime)
    namespaces = [{"type": kind} for kind in ("ipc", "uts", "mount", "network")]
    shim = await shims.shim("shared", "/bin/true", runtime=str(spy.path), namespaces=namespaces)
    await shim.create()
    await shim.start()
    await shim.wait()
    await shim.delete()
    assert spy.count("delete") == 1
    assert left(shims, "shared") == []


@both
async def test_what_was_never_started_is_left_to_the_runtime(shims: ShimRoom, runtime: str) -> None:
    spy = Spy(shims.base, runtime)
    shim = await shims.shim("unborn", "/bin/true", runtime=str(spy.path))
    await shim.create()
    await shim.delete()
    assert spy.count("delete") == 1
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
