"""A shim as a sandbox: its life, the containers in it, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from protos.containerd.runtime.sandbox.v1 import sandbox_pb2 as pb
from protos.containerd.task.v3 import shim_pb2 as v3
from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1_metrics
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2_metrics
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.linux import mount

from .conftest import RUNTIME, Shim, ShimRoom, eventually, needs_root, spec

pytestmark = needs_root

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
_STUBBORN = ("/bin/sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.05; done")


class Pod:
    """A shim that is asked to be a sandbox."""

    def __init__(self, room: ShimRoom, shim: Shim) -> None:
        self.room = room
        self.shim = shim

    async def call(self, method: str, seconds: float = 20.0, **fields: Any) -> Any:
        name = {"PingSandbox": "Ping", "SandboxMetrics": "SandboxMetrics"}.get(method, method)
        request: Message = getattr(pb, f"{name}Request")(**{"sandbox_id": "pod", **fields})
        answer: type[Message] = getattr(pb, f"{name}Response")
        return await self.shim.client.call(SERVICE, method, request, answer, timeout=seconds)

    async def create(self, **fields: Any) -> None:
        await self.call("CreateSandbox", bundle_path=str(self.shim.bundle), **fields)

    async def state(self) -> str:
        state: str = (await self.call("SandboxStatus")).state
        return state

    async def container(self, id: str, *args: str) -> int:
        """Creates and starts a container of this shim, and waits for it to say something."""
        bundle = self.room.base / id
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(spec(id, args)))
        said = bundle / "said"
        request = v3.CreateTaskRequest(id=id, bundle=str(bundle), stdout=f"file://{said}")
        request.rootfs.add(type="bind", source=str(self.room.rootfs), options=["rbind", "ro"])
        pid = (await self.shim.call("Create", v3.CreateTaskResponse, request)).pid
        await self.shim.call("Start", v3.StartResponse, v3.StartRequest(id=id))
        await eventually(lambda: said.exists() and said.read_text() != "")
        return pid

    async def delete(self, id: str) -> int:
        answer = await self.shim.call("Delete", v3.DeleteResponse, v3.DeleteRequest(id=id))
        return answer.exit_status

    def clean(self) -> None:
        for folder in (self.room.base / "rt").glob("*/*"):
            command = [RUNTIME, "--root", str(folder.parent), "delete", "--force", folder.name]
            subprocess.run(command, capture_output=True, check=False)
        for point in mount.mount_points():
            if point.startswith(str(self.room.base)):
                mount.unmount_all(point)


@pytest.fixture
async def pod(shims: ShimRoom) -> AsyncIterator[Pod]:
    pod = Pod(shims, await shims.shim("pod", "true"))
    yield pod
    if Path(f"/proc/{pod.shim.pid}").exists():
        os.kill(pod.shim.pid, 9)
    await asyncio.to_thread(pod.clean)


@pytest.fixture
def netns() -> Iterator[str]:
    """A network namespace that a process holds."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder:
        holder.stdout.readline()
        yield f"/proc/{holder.pid}/ns/net"


async def test_a_life(pod: Pod, netns: str) -> None:
    shim = pod.shim
    await pod.create(netns_path=netns, annotations={"a": "b"})
    assert await pod.state() == "SANDBOX_NOTREADY"
    waiting = asyncio.create_task(pod.call("WaitSandbox"))
    started = await pod.call("StartSandbox")
    assert started.pid == shim.pid
    status = await pod.call("SandboxStatus", verbose=True)
    assert (status.sandbox_id, status.pid, status.state) == ("pod", shim.pid, "SANDBOX_READY")
    assert status.created_at == started.created_at and not status.HasField("exited_at")
    info = json.loads(status.info["info"])
    assert (info["pid"], info["netnsPath"], info["annotations"]) == (shim.pid, netns, {"a": "b"})
    assert not (await pod.call("SandboxStatus")).info
    assert (await pod.call("Platform")).platform.os == "linux"
    await pod.call("PingSandbox")
    held = [os.readlink(fd) for fd in Path(f"/proc/{shim.pid}/fd").iterdir()]
    assert os.readlink(netns) in held

    await shim.call("Shutdown", Empty)  # what a daemon says after each task
    assert not waiting.done()
    await pod.call("StopSandbox")
    exit = await waiting
    assert exit.exit_status == 0
    status = await pod.call("SandboxStatus")
    assert (status.state, status.exited_at) == ("SANDBOX_NOTREADY", exit.exited_at)
    assert await pod.call("WaitSandbox") == exit
    held = [os.readlink(fd) for fd in Path(f"/proc/{shim.pid}/fd").iterdir()]
    assert os.readlink(netns) not in held
    await pod.call("StopSandbox")
    await pod.call("ShutdownSandbox")
    await eventually(lambda: not Path(f"/proc/{shim.pid}").exists())


async def test_containers_come_and_go(pod: Pod) -> None:
    await pod.create()
    with pytest.raises(FailedPrecondition, match="not ready"):
        await pod.container("early", "true")
    await pod.call("StartSandbox")
    for id in ("a", "b"):
        await pod.container(id, "/bin/sh", "-c", "echo up; sleep 600")
    metrics = (await pod.call("SandboxMetrics")).metrics
    kind = {"v1": v1_metrics, "v2": v2_metrics}[metrics.data.type_url.split(".")[-2]]
    assert metrics.id == "pod"
    assert kind.Metrics.FromString(metrics.data.value).pids.current >= 2
    info = json.loads((await pod.call("SandboxStatus", verbose=True)).info["info"])
    assert [c["id"] for c in info["containers"]] == ["a", "b"]

    await pod.shim.call("Kill", Empty, v3.KillRequest(id="a", signal=9))
    await pod.shim.call("Wait", v3.WaitResponse, v3.WaitRequest(id="a"))
    assert await pod.delete("a") == 137
    await pod.call("StopSandbox")
    assert await pod.delete("b") == 137
    await pod.shim.call("Shutdown", Empty)
    await pod.call("PingSandbox")
    with pytest.raises(FailedPrecondition, match="not ready"):
        await pod.container("late", "true")


async def test_stopping_asks_first(pod: Pod) -> None:
    await pod.create()
    await pod.call("StartSandbox")
    await pod.container(
        "kind", "/bin/sh", "-c", "trap 'exit 3' TERM; echo up; while true; do sleep 0.05; done"
    )
    await pod.call("StopSandbox", timeout_secs=30)
    assert await pod.delete("kind") == 3


async def test_stopping_insists(pod: Pod) -> None:
    await pod.create()
    await pod.call("StartSandbox")
    await pod.container("stubborn", *_STUBBORN)
    await pod.call("StopSandbox", timeout_secs=1)
    assert await pod.delete("stubborn") == 137


async def test_shutting_down_ends_all(pod: Pod) -> None:
    source = pod.room.base / "source"
    source.mkdir()
    bind = {"type": "bind", "source": str(source), "options": ["rbind"]}
    (pod.shim.bundle / "rootfs").mkdir()
    await pod.create(rootfs=[bind])
    assert mount.mounted(str(pod.shim.bundle / "rootfs"))
    await pod.call("StartSandbox")
    pid = await pod.container("left", "/bin/sh", "-c", "echo up; sleep 600")
    waiting = asyncio.create_task(pod.call("WaitSandbox"))
    await pod.call("ShutdownSandbox")
    assert (await waiting).exit_status == 0
    await eventually(lambda: not Path(f"/proc/{pod.shim.pid}").exists())
    assert not Path(f"/proc/{pid}").exists()
    assert not [p for p in mount.mount_points() if p.startswith(str(pod.room.base))]


async def test_what_is_refused(pod: Pod, tmp_path: Path) -> None:
    for method in ("StartSandbox", "StopSandbox", "PingSandbox", "SandboxStatus", "WaitSandbox"):
        with pytest.raises(NotFound, match="pod"):
            await pod.call(method)
    for path, error in (
        (str(tmp_path / "none"), NotFound),
        (str(tmp_path), InvalidArgument),
        (f"/proc/{os.getpid()}/ns/uts", InvalidArgument),
    ):
        with pytest.raises(error):
            await pod.create(netns_path=path)
    with pytest.raises(InvalidArgument, match="bundle_path"):
        await pod.call("CreateSandbox")
    await pod.create()
    with pytest.raises(AlreadyExists):
        await pod.create()
    with pytest.raises(NotFound, match="other"):
        await pod.call("PingSandbox", sandbox_id="other")
    await pod.call("StartSandbox")
    with pytest.raises(FailedPrecondition, match="already running"):
        await pod.call("StartSandbox")
    with pytest.raises(DeadlineExceeded):
        await pod.call("WaitSandbox", seconds=0.2)
    await pod.call("StopSandbox")
    with pytest.raises(FailedPrecondition, match="stopped"):
        await pod.call("StartSandbox")
    with pytest.raises(Unimplemented):
        await pod.shim.client.call(SERVICE, "UpdateSandbox", Empty(), Empty, timeout=5)


async def test_a_shim_that_is_none_can_be_shut_down(pod: Pod) -> None:
    await pod.call("ShutdownSandbox")
    await eventually(lambda: not Path(f"/proc/{pod.shim.pid}").exists())


async def test_nobody_is_needed_while_it_can_be_found(shims: ShimRoom) -> None:
    pod = Pod(shims, await shims.shim("pod", "true", arguments={"idle_seconds": 0.05}))
    await pod.create()
    await pod.call("StartSandbox")
    pod.shim.client.close()
    await asyncio.sleep(0.5)
    assert Path(f"/proc/{pod.shim.pid}").exists()
    Path(pod.shim.address).unlink()
    await eventually(lambda: not Path(f"/proc/{pod.shim.pid}").exists())


def test_other_shims_do_not_carry_it() -> None:
    code = "import sys; from shims import preload, worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "shims.service" in done.stdout.split()
    assert not [name for name in done.stdout.split() if "sandbox" in name or "netns" in name]
