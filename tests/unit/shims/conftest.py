"""Real shims without a daemon: the zygote forks them, the tests speak ttrpc to them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from protos.containerd.events import events_pb2
from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2
from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.linux import cgroups, mount
from supervisord.runtime.zygote import Zygote
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.server import Context, Server, bind

R = TypeVar("R", bound=Message)

NS = "ns"
CGROUP = f"supervisord-shims-test-{os.getpid()}"
"""The parent of the containers' control groups; other test processes have their own."""
TASK = "containerd.task.v3.Task"
RUNTIME = os.environ.get("SUPERVISORD_TEST_RUNTIME", "runc")
BUSYBOX = shutil.which("busybox")

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or BUSYBOX is None or shutil.which("runc") is None,
    reason="containers need root, runc and busybox",
)


def spec(id: str, args: Sequence[str]) -> dict[str, Any]:
    """An OCI runtime spec."""
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "cgroupsPath": f"/{CGROUP}/{id}",
            "namespaces": [{"type": kind} for kind in kinds],
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
        },
    }


class Events:
    """The daemon's end of the event stream."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.got: list[tuple[str, str, bytes]] = []
        self._server: Server | None = None

    async def open(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        Path(self.path).unlink(missing_ok=True)
        sock.bind(self.path)
        sock.listen()
        descriptor = events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"]
        self._server = Server([bind(descriptor, self)])
        await self._server.start(sock)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None
        Path(self.path).unlink(missing_ok=True)

    async def Forward(self, request: events_ttrpc_pb2.ForwardRequest, context: Context) -> Empty:
        envelope = request.envelope
        assert envelope.namespace == NS
        assert context.metadata["containerd-namespace-ttrpc"] == NS
        assert envelope.timestamp.seconds > 0
        self.got.append((envelope.topic, envelope.event.type_url, envelope.event.value))
        return Empty()

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _, _ in self.got]

    def of(self, topic: str) -> list[Any]:
        """The payloads of a topic."""
        return [
            getattr(events_pb2, url.rpartition(".")[2]).FromString(value)
            for name, url, value in self.got
            if name == topic
        ]

    async def until(self, topic: str, count: int = 1) -> None:
        await eventually(lambda: self.topics.count(topic) >= count)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.005)


class Shim:
    """One shim with one container's bundle."""

    def __init__(
        self,
        room: ShimRoom,
        id: str,
        spec: dict[str, Any],
        runtime: str,
        arguments: dict[str, object] | None = None,
    ) -> None:
        self.room = room
        self.arguments = arguments or {}
        self.runtime = runtime
        self.id = id
        self.bundle = room.base / id
        self.bundle.mkdir()
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.address = str(self.bundle / "s")
        self.pid = 0
        self.client: Client

    async def open(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen()
        log = os.open(self.bundle / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.pid = await self.room.zygote.spawn(
            "shim",
            {
                "namespace": NS,
                "id": self.id,
                "bundle": str(self.bundle),
                "address": self.address,
                "publish": self.room.events.path,
                "runtime": self.runtime,
                "runtime_root": str(self.room.base / "rt"),
                "log_level": "debug",
                **self.arguments,
            },
            [listener.fileno(), log],
        )
        listener.close()
        os.close(log)
        self.client = await Client.connect(self.address)
        await self.call("Connect", v3.ConnectResponse)

    @property
    def log(self) -> str:
        return (self.bundle / "log").read_text()

    async def call(
        self,
        method: str,
        answer: type[R],
        request: Message | None = None,
        *,
        service: str = TASK,
        seconds: float = 20.0,
        **fields: Any,
    ) -> R:
        """Calls a method; the request's class follows from its name."""
        if request is None:
            name = {"Exec": "ExecProcess", "Update": "UpdateTask", "Checkpoint": "CheckpointTask"}
            kind = getattr(v3, f"{name.get(method, method)}Request")
            request = kind(id=self.id, **fields)
        return await self.client.call(service, method, request, answer, timeout=seconds)

    async def create(self, **fields: Any) -> int:
        request = v3.CreateTaskRequest(id=self.id, bundle=str(self.bundle), **fields)
        request.rootfs.add(
            type="bind", source=str(self.room.rootfs), options=["rbind", fields.pop("mode", "ro")]
        )
        return (await self.call("Create", v3.CreateTaskResponse, request)).pid

    async def start(self, exec_id: str = "") -> int:
        return (await self.call("Start", v3.StartResponse, exec_id=exec_id)).pid

    async def wait(self, exec_id: str = "") -> int:
        return (await self.call("Wait", v3.WaitResponse, exec_id=exec_id)).exit_status

    async def delete(self, exec_id: str = "") -> v3.DeleteResponse:
        return await self.call("Delete", v3.DeleteResponse, exec_id=exec_id)

    async def kill(self, signal: int = 9, exec_id: str = "", all: bool = False) -> None:
        await self.call("Kill", Empty, signal=signal, exec_id=exec_id, all=all)

    async def state(self, exec_id: str = "") -> v3.StateResponse:
        return await self.call("State", v3.StateResponse, exec_id=exec_id)

    async def exec(self, exec_id: str, *args: str, **fields: Any) -> None:
        process = spec(self.id, args)["process"]
        request = v3.ExecProcessRequest(id=self.id, exec_id=exec_id, **fields)
        request.spec.value = json.dumps(process).encode()
        await self.call("Exec", Empty, request)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def close(self) -> None:
        """Ends container and shim, whatever the state."""
        if Path(f"/proc/{self.pid}").exists():
            spied = Path(self.runtime).parent.name.startswith("bin-")
            runtime = self.runtime if spied else RUNTIME
            for command in (["kill", "--all", self.id, "KILL"], ["delete", "--force", self.id]):
                await asyncio.to_thread(
                    subprocess.run,
                    [runtime, "--root", str(self.room.base / "rt" / NS), *command],
                    capture_output=True,
                    check=False,
                )
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        self.client.close()
        mount.unmount_all(str(self.bundle / "rootfs"))


class ShimRoom:
    """Where the shims of a test live."""

    def __init__(self, base: Path, rootfs: Path, zygote: Zygote) -> None:
        self.base = base
        self.rootfs = rootfs
        self.zygote = zygote
        self.events = Events(str(base / "events"))
        self.shims: list[Shim] = []

    async def shim(
        self,
        id: str,
        *args: str,
        runtime: str = RUNTIME,
        arguments: dict[str, object] | None = None,
        **changes: Any,
    ) -> Shim:
        """A shim that serves, with a bundle to create a container from. ``arguments`` are more
        of the shim's own."""
        content = spec(id, args)
        content["linux"] |= changes
        shim = Shim(self, id, content, runtime, arguments)
        self.shims.append(shim)
        await shim.open()
        return shim

    def fifo(self, name: str) -> str:
        path = str(self.base / name)
        os.mkfifo(path)
        return path


@pytest.fixture(scope="session")
def rootfs() -> Iterator[Path]:
    """A root filesystem of busybox alone."""
    with tempfile.TemporaryDirectory(prefix="sv-rootfs-") as folder:
        path = Path(folder)
        for name in ("bin", "proc", "dev", "sys", "etc", "tmp"):
            (path / name).mkdir()
        shutil.copy(BUSYBOX or "/bin/busybox", path / "bin/busybox")
        for name in ("sh", "true", "sleep", "cat", "echo", "kill", "stty", "dd", "tr", "yes"):
            (path / "bin" / name).symlink_to("busybox")
        yield path


@pytest.fixture
async def shims(rootfs: Path) -> AsyncIterator[ShimRoom]:
    """A zygote, a place for events, and shims on demand; all gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="s-"))
    zygote = Zygote(spares=True)
    room = ShimRoom(base, rootfs, zygote)
    await room.events.open()
    try:
        yield room
    finally:
        for shim in room.shims:
            await shim.close()
        await zygote.close()
        await room.events.close()
        await asyncio.to_thread(shutil.rmtree, base)
        await asyncio.to_thread(_remove_cgroups)


def _remove_cgroups() -> None:
    """The runtime leaves the parent of the containers' groups."""
    for pattern in (CGROUP, f"*/{CGROUP}"):
        for folder in Path(cgroups.ROOT).glob(pattern):
            with suppress(OSError):
                folder.rmdir()
