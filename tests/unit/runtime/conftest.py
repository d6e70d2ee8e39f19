"""A task manager with real shims, a real OCI runtime and real containers of busybox."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.errors import NotFound
from supervisord.contracts.events import Envelope
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.tasks import CreateTask, Stdio
from supervisord.contracts.typed import TypedValue
from supervisord.contracts.workers import ShimSpawner
from supervisord.events import ttrpc_service
from supervisord.events.exchange import Exchange, Subscription
from supervisord.events.fields import decode
from supervisord.linux import cgroups, mount
from supervisord.runtime.launch import Settings
from supervisord.runtime.manager import TaskManager
from supervisord.runtime.oci import OciRuntimes
from supervisord.runtime.zygote import Zygote
from supervisord.ttrpc.server import Server

_RUN = os.environ["SUPERVISORD_TEST_RUN"] + os.environ.get("PYTEST_XDIST_WORKER", "")

NS = f"ns-{_RUN}"
"""Nobody else's: containerd's own shim keeps what it runs in ``/run/containerd/runc/NAMESPACE``."""

CGROUP = f"supervisord-test-{_RUN}"
"""The parent of the containers' control groups."""

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
BUSYBOX = shutil.which("busybox")

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or BUSYBOX is None or shutil.which("runc") is None,
    reason="containers need root, runc and busybox",
)


def spec(id: str, args: Sequence[str]) -> dict[str, Any]:
    namespaces = [{"type": type} for type in ("pid", "ipc", "uts", "mount", "network")]
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
        ],
        "linux": {
            "cgroupsPath": f"/{CGROUP}/{id}",
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


class Containers:
    """Container records in memory: what the manager asks of the metadata."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], Container] = {}

    def get(self, namespace: str, id: str) -> Container:
        try:
            return self.all[namespace, id]
        except KeyError:
            raise NotFound(f'container "{id}" in namespace "{namespace}": not found') from None


class Engine:
    """One daemon's worth of parts; ``restart`` is a daemon that dies and comes back."""

    def __init__(self, base: Path, rootfs: Path, spawner: ShimSpawner) -> None:
        self.base = base
        self.rootfs = rootfs
        self.spawner = spawner
        self.containers = Containers()
        self.exchange = Exchange()
        self.settings = Settings(
            state=str(base / "state"),
            address=str(base / "d.sock"),
            ttrpc_address=str(base / "d.sock.ttrpc"),
            runtime_root=str(base / "state" / "runc"),
            log_level="debug",
        )
        self.manager: TaskManager
        self._owner = TaskOwner("engine")
        self._server: Server
        self.runtime = "runc"

    async def open(self) -> None:
        self._owner = TaskOwner("engine")
        self._server = Server([ttrpc_service.service(self.exchange)])
        await self._server.start(ttrpc_service.listen(self.settings.ttrpc_address))
        self.manager = TaskManager(
            self.settings,
            self.containers,  # type: ignore[arg-type]
            self.exchange,
            self.spawner,
            OciRuntimes(str(self.base), self._owner, fixed=self.runtime),
        )
        await self.manager.open()

    async def close(self) -> None:
        await self.manager.close()
        await self._server.close()
        await self._owner.close()

    async def restart(self) -> None:
        await self.close()
        await self.open()

    def container(self, id: str, *args: str, runtime: str = "io.containerd.runc.v2") -> CreateTask:
        value = TypedValue(SPEC_URL, json.dumps(spec(id, args)).encode())
        self.containers.all[NS, id] = Container(id=id, runtime=Runtime(runtime), spec=value)
        return CreateTask(id, [Mount("bind", str(self.rootfs), ("rbind", "ro"))], Stdio())

    async def run(self, id: str, *args: str) -> int:
        await self.manager.create(NS, self.container(id, *args))
        return await self.manager.start(NS, id)

    async def remove(self, id: str) -> None:
        """Kills and deletes, whatever the state."""
        try:
            await self.manager.kill(NS, id, 9, all=True)
            await asyncio.wait_for(self.manager.wait(NS, id), 10)
        except NotFound:
            pass
        await self.manager.delete(NS, id)

    def residue(self) -> list[str]:
        """What must not be there when no task is."""
        state = Path(self.settings.state)
        found = [str(path) for path in (state / "s").iterdir()]
        found += [str(path) for path in (state / "trash").iterdir()]
        found += [str(path) for path in (state / "tasks").glob("*/*")]
        found += [str(path) for path in (state / "runc").glob("*/*")]
        found += [point for point in mount.mount_points() if point.startswith(str(self.base))]
        return found

    async def clean(self) -> None:
        """Waits for what goes on behind the answers, and expects nothing to be left."""
        if not await until(lambda: not self.residue()):
            raise AssertionError(self.residue())


async def until(holds: Callable[[], object], seconds: float = 10) -> bool:
    """Waits until something holds; False when it does not in time."""
    for _ in range(int(seconds / 0.02)):
        if holds():
            return True
        await asyncio.sleep(0.02)
    return bool(holds())


async def told(subscription: Subscription, count: int) -> list[tuple[str, Any]]:
    """Topics and payloads of the next events."""
    events: list[Envelope] = []
    async with asyncio.timeout(10):
        while len(events) < count:
            events.append(await anext(subscription))
    return [(event.topic, decode(event.event)) for event in events]


@pytest.fixture(scope="session")
def rootfs(short_temporary_folder: Path) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="root-"))
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    assert BUSYBOX is not None
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for name in ("sh", "true", "sleep", "echo", "cat"):
        (root / "bin" / name).symlink_to("busybox")
    yield root
    shutil.rmtree(root)


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    zygote = Zygote()
    yield zygote
    await zygote.close()


def _remove_parents() -> None:
    """The runtimes leave the folders that containers were in."""
    left = [Path("/run/containerd/runc", NS)]
    left += [path for where in (CGROUP, f"*/{CGROUP}") for path in Path(cgroups.ROOT).glob(where)]
    for folder in left:
        with suppress(FileNotFoundError):
            folder.rmdir()


@pytest.fixture
async def engines(
    rootfs: Path, short_temporary_folder: Path
) -> AsyncIterator[Callable[[ShimSpawner], Engine]]:
    """Makes engines (not opened) and cleans up after them."""
    made: list[Engine] = []

    def make(spawner: ShimSpawner) -> Engine:
        made.append(Engine(Path(tempfile.mkdtemp(prefix="e-")), rootfs, spawner))
        return made[-1]

    yield make
    for engine in made:
        for _, id in list(engine.manager._tasks):
            await engine.remove(id)
        await engine.clean()
        await engine.close()
        shutil.rmtree(engine.base)
    _remove_parents()


@pytest.fixture
async def engine(zygote: Zygote, engines: Callable[[ShimSpawner], Engine]) -> Engine:
    engine = engines(zygote)
    await engine.open()
    return engine
