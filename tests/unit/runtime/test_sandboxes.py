"""Sandboxes with real shims: their life, the tasks in them, deaths, restarts, and failures."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protos.containerd.events.events_pb2 import SandboxExit
from supervisord.contracts.containers import Runtime
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
)
from supervisord.contracts.sandboxes import CreateSandbox, Sandbox
from supervisord.contracts.tasks import Status
from supervisord.runtime import sandbox_shim
from supervisord.runtime.bundle import ShimRecord
from supervisord.runtime.launch import Settings
from supervisord.runtime.sandbox import Instance
from supervisord.runtime.sandbox_shim import SandboxShim
from supervisord.runtime.sandboxes import ShimSandboxes

from .conftest import NS, Engine, needs_root, told, until
from .test_foreign import MAIN, NEWER, OURS, Program, program

__all__ = ["program"]  # a fixture

pytestmark = needs_root

RUNC = "io.containerd.runc.v2"
POD = CreateSandbox(Sandbox("pod", Runtime(RUNC), sandboxer="shim"), annotations={"a": "b"})


class Records:
    """Sandbox records in memory: what the controller asks of the metadata."""

    def __init__(self) -> None:
        self.all: dict[str, Sandbox] = {}

    def get(self, namespace: str, id: str) -> Sandbox:
        if id not in self.all:
            raise NotFound(f'sandbox "{id}": not found')
        return self.all[id]


class Pods:
    """A task manager with a sandbox controller."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.records = Records()
        self.state = str(engine.base / "pods")
        self.shims: ShimSandboxes

    @property
    def settings(self) -> Settings:
        return replace(self.engine.settings, state=self.state)

    async def open(self) -> None:
        self.shims = ShimSandboxes(
            self.settings,
            self.records,  # type: ignore[arg-type]
            self.engine.manager,
            self.engine.manager.groups,
            self.engine.exchange,
            self.engine.spawner,
            self.engine.manager.runtimes,
        )
        await self.shims.open()
        self.engine.manager.attach(self.shims)

    async def restart(self) -> None:
        await self.shims.close()
        await self.engine.restart()
        await self.open()

    async def ready(self) -> int:
        """Creates and starts the sandbox; answers the pid of its shim."""
        await self.shims.create(NS, POD)
        return (await self.shims.start(NS, "pod")).pid

    async def run(self, id: str, *args: str, runtime: str = RUNC) -> int:
        """Runs a container in the sandbox; answers the pid of init."""
        request = self.engine.container(id, *args, runtime=runtime)
        container = self.engine.containers.all[NS, id]
        self.engine.containers.all[NS, id] = replace(container, sandbox="pod")
        pid = await self.engine.manager.create(NS, request)
        await self.engine.manager.start(NS, id)
        return pid

    def residue(self) -> list[str]:
        found: list[str] = []
        for pattern in ("s/*", "trash/*", "sandboxes/*/*"):
            found += [str(path) for path in Path(self.state).glob(pattern)]
        return found

    async def clean(self) -> None:
        assert await until(lambda: not self.residue()), self.residue()


def shim_of(pid: int) -> int:
    """The parent of a container's init."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


@pytest.fixture
async def pods(engine: Engine) -> AsyncIterator[Pods]:
    pods = Pods(engine)
    await pods.open()
    yield pods
    with suppress(NotFound):
        await pods.shims.shutdown(NS, "pod")
    await pods.clean()
    await pods.shims.close()


async def test_a_life(pods: Pods) -> None:
    shims = pods.shims
    async with aclosing(pods.engine.exchange.subscribe(['topic~="^/sandboxes/"'])) as events:
        await shims.create(NS, POD)
        with pytest.raises(AlreadyExists, match="pod"):
            await shims.create(NS, POD)
        waiting = asyncio.create_task(shims.wait(NS, "pod"))
        started = await shims.start(NS, "pod")
        assert started.address.startswith(f"ttrpc+unix://{pods.state}/s/")
        assert (started.id, started.version) == ("pod", 3)
        with pytest.raises(FailedPrecondition):
            await shims.start(NS, "pod")
        status = await shims.status(NS, "pod", verbose=True)
        assert (status.state, status.pid) == ("SANDBOX_READY", started.pid)
        assert status.created_at == started.created_at > 0 == status.exited_at
        assert '"a": "b"' in status.info["info"]
        assert (await shims.platform(NS, "pod")).os == "linux"
        assert (await shims.metrics(NS, "pod")).container_id == "pod"
        await shims.update(NS, "pod", POD.sandbox, ["labels"])
        assert not waiting.done()
        await shims.stop(NS, "pod")
        exit = await waiting
        assert exit.exit_status == 0 and exit == await shims.wait(NS, "pod")
        status = await shims.status(NS, "pod")
        assert (status.state, status.exited_at) == ("SANDBOX_NOTREADY", exit.exited_at)
        with pytest.raises(AlreadyExists):
            await shims.create(NS, POD)
        await shims.stop(NS, "pod")
        await shims.shutdown(NS, "pod")
        assert [topic for topic, _ in await told(events, 3)] == [
            "/sandboxes/create",
            "/sandboxes/start",
            "/sandboxes/exit",
        ]
    assert await until(lambda: not Path(f"/proc/{started.pid}").exists())
    await pods.clean()
    with pytest.raises(NotFound):
        await shims.shutdown(NS, "pod")
    await pods.ready()


async def test_what_is_unknown(pods: Pods) -> None:
    shims = pods.shims
    for call in (shims.start, shims.platform, shims.wait, shims.metrics, shims.shutdown):
        with pytest.raises(NotFound, match="none"):
            await call(NS, "none")
    await shims.stop(NS, "none")
    status = await shims.status(NS, "none")
    assert (status.id, status.state) == ("none", "") and status.exited_at > 0
    with pytest.raises(InvalidArgument):
        await shims.create(NS, CreateSandbox(Sandbox("a/b", Runtime(RUNC))))
    with pytest.raises(InvalidArgument, match="runtime"):
        await shims.create(NS, CreateSandbox(Sandbox("pod")))
    with pytest.raises(NotFound):
        await shims.create(NS, replace(POD, netns_path="/none"))
    await pods.clean()
    await pods.ready()


async def test_containers_join(pods: Pods) -> None:
    shim = await pods.ready()
    pids = [await pods.run(id, "sleep", "600") for id in ("a", "b")]
    assert [shim_of(pid) for pid in pids] == [shim, shim]
    await pods.engine.remove("a")
    assert await until(lambda: not Path(f"/proc/{pids[0]}").exists())
    assert (await pods.shims.status(NS, "pod")).state == "SANDBOX_READY"
    await pods.shims.stop(NS, "pod")
    assert (await pods.engine.manager.get(NS, "b")).status is Status.STOPPED
    # Either the daemon has heard of the end already, or the shim says it.
    with pytest.raises(FailedPrecondition, match=r"has ended|is not ready"):
        await pods.run("c", "true")
    await pods.engine.manager.delete(NS, "b")
    assert Path(f"/proc/{shim}").exists()


async def test_a_sandbox_takes_its_tasks_along(pods: Pods) -> None:
    await pods.ready()
    pid = await pods.run("a", "sleep", "600")
    async with aclosing(pods.engine.exchange.subscribe(['topic~="(exit|delete)$"'])) as events:
        await pods.shims.shutdown(NS, "pod")
        pods.engine.exchange.publish(NS, "/marker/exit", SandboxExit())
        topics = [topic for topic, _ in await told(events, 4)]
    assert topics == ["/tasks/exit", "/tasks/delete", "/sandboxes/exit", "/marker/exit"]
    assert not Path(f"/proc/{pid}").exists()
    assert await pods.engine.manager.list(NS) == []


async def test_only_a_record_is_no_sandbox(pods: Pods) -> None:
    pods.records.all["pod"] = POD.sandbox
    with pytest.raises(NotFound, match="can't find shim for sandbox pod"):
        await pods.run("a", "true")
    pods.records.all.clear()
    shim = shim_of(await pods.run("a", "sleep", "600"))  # as containerd: a shim of its own
    assert shim not in (0, 1)


async def test_a_restart_finds_all(pods: Pods) -> None:
    shim = await pods.ready()
    pid = await pods.run("a", "sleep", "600")
    await pods.restart()
    assert (await pods.shims.status(NS, "pod")).state == "SANDBOX_READY"
    assert shim_of(await pods.run("b", "sleep", "600")) == shim
    await pods.engine.remove("a")
    await pods.engine.remove("b")
    assert not Path(f"/proc/{pid}").exists() and Path(f"/proc/{shim}").exists()
    waiting = asyncio.create_task(pods.shims.wait(NS, "pod"))
    await pods.shims.stop(NS, "pod")
    exit = await waiting
    await pods.restart()
    assert await pods.shims.wait(NS, "pod") == exit
    assert (await pods.shims.status(NS, "pod")).exited_at == exit.exited_at


async def test_a_killed_shim_is_the_end(pods: Pods) -> None:
    shim = await pods.ready()
    waiting = asyncio.create_task(pods.shims.wait(NS, "pod"))
    async with aclosing(pods.engine.exchange.subscribe(['topic=="/sandboxes/exit"'])) as events:
        os.kill(shim, signal.SIGKILL)
        exit = await asyncio.wait_for(waiting, 10)
        [(_, event)] = await told(events, 1)
        assert (event.sandbox_id, event.exit_status) == ("pod", 137)
    assert exit.exit_status == 137
    status = await pods.shims.status(NS, "pod")
    assert (status.state, status.exited_at) == ("SANDBOX_NOTREADY", exit.exited_at)
    await pods.restart()
    assert await pods.shims.wait(NS, "pod") == exit
    with pytest.raises(FailedPrecondition):
        await pods.shims.start(NS, "pod")
    await pods.shims.stop(NS, "pod")
    assert await pods.ready() != shim


async def test_a_shim_that_dies_while_nobody_looks(pods: Pods) -> None:
    shim = await pods.ready()
    await pods.shims.close()
    os.kill(shim, signal.SIGKILL)
    await pods.engine.restart()
    async with aclosing(pods.engine.exchange.subscribe(['topic=="/sandboxes/exit"'])) as events:
        await pods.open()
        assert len(await told(events, 1)) == 1
    assert (await pods.shims.wait(NS, "pod")).exit_status == 137


async def test_the_tasks_of_a_killed_shim(pods: Pods) -> None:
    shim = await pods.ready()
    pid = await pods.run("a", "sleep", "600")
    os.kill(shim, signal.SIGKILL)
    assert (await asyncio.wait_for(pods.shims.wait(NS, "pod"), 10)).exit_status == 137
    await pods.shims.shutdown(NS, "pod")
    assert await until(lambda: not Path(f"/proc/{pid}").exists())
    assert await until(lambda: len(pods.engine.manager) == 0)
    await pods.ready()


async def test_half_made_ones_are_removed(pods: Pods) -> None:
    shim = await pods.ready()
    await pods.shims.close()
    [bundle] = Path(pods.state).glob("sandboxes/*/*")
    record = pods.shims._creation.store.bundle(NS, "pod")
    whole = record.read_record()
    assert whole is not None
    record.write_record(replace(whole, init_pid=0))
    empty = pods.shims._creation.store.create(NS, "empty", b"")
    bare = pods.shims._creation.store.create(NS, "bare", b"")
    bare.write_record(ShimRecord(f"{pods.state}/s/none"))
    await pods.engine.restart()
    await pods.open()
    assert await until(lambda: not Path(f"/proc/{shim}").exists())
    assert await until(lambda: not bundle.exists() and not Path(empty.path).exists())
    assert await until(lambda: not Path(bare.path).exists())
    assert len(pods.shims) == 0
    assert await pods.ready() != shim


async def test_a_cancelled_creation_is_claimed_by_its_retry(pods: Pods) -> None:
    creating = asyncio.create_task(pods.shims.create(NS, POD))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await asyncio.gather(pods.shims.create(NS, POD), pods.shims.create(NS, POD))
    with pytest.raises(AlreadyExists):
        await pods.shims.create(NS, POD)


async def test_another_request_replaces_what_nobody_claims(pods: Pods) -> None:
    creating = asyncio.create_task(pods.shims.create(NS, POD))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert await until(lambda: not pods.shims._orders)
    first = (await pods.shims._instances[NS, "pod"].reach()).client
    await pods.shims.create(NS, replace(POD, annotations={}))
    assert first.is_lost
    assert '"annotations": {}' in (await pods.shims.status(NS, "pod", verbose=True)).info["info"]


BREAKS = """
import os, shims.sandbox
from supervisord.contracts.errors import PermissionDenied

async def broken(self, request):
    {how}

shims.sandbox.SandboxService.{method} = broken
"""


@pytest.mark.parametrize(
    ("method", "how", "error"),
    [
        ("CreateSandbox", "os._exit(3)", Unavailable),
        ("CreateSandbox", "raise PermissionDenied('not today')", PermissionDenied),
        ("StartSandbox", "os._exit(3)", Unavailable),
        ("StartSandbox", "raise PermissionDenied('not today')", PermissionDenied),
        ("ShutdownSandbox", "raise PermissionDenied('not today')", None),
        ("WaitSandbox", "raise PermissionDenied('not today')", None),
    ],
)
async def test_a_shim_that_fails(
    pods: Pods, program: Program, method: str, how: str, error: type[Error] | None
) -> None:
    broken = BREAKS.replace("{how}", how).replace("{method}", method)
    record = replace(POD.sandbox, runtime=Runtime(program(OURS + broken + NEWER + MAIN)))
    with pytest.raises(error) if error else nullcontext():
        await pods.shims.create(NS, replace(POD, sandbox=record))
        await pods.shims.start(NS, "pod")
    if error is None:
        await pods.shims.stop(NS, "pod")
        await pods.shims.shutdown(NS, "pod")
    assert len(pods.shims) == 0
    await pods.clean()
    await pods.ready()


@pytest.mark.parametrize("method", ["CreateSandbox", "StartSandbox"])
async def test_a_shim_that_hangs(
    pods: Pods, program: Program, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    hangs = BREAKS.replace("{how}", "await self._loop.sleep(3600)").replace("{method}", method)
    record = replace(POD.sandbox, runtime=Runtime(program(OURS + hangs + NEWER + MAIN)))
    wanted = replace(POD, sandbox=record)
    if method == "StartSandbox":
        await pods.shims.create(NS, wanted)
    monkeypatch.setattr(sandbox_shim, "_MAKE_SECONDS", 0.2)
    with pytest.raises(DeadlineExceeded):
        if method == "CreateSandbox":
            await pods.shims.create(NS, wanted)
        await pods.shims.start(NS, "pod")
    monkeypatch.undo()
    assert len(pods.shims) == 0
    await pods.clean()
    await pods.ready()


@pytest.mark.parametrize("refusals", [0, 2])
async def test_nobody_claims_it(pods: Pods, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
    """Its removal is tried again where it fails."""
    monkeypatch.setattr("supervisord.runtime.sandboxes.UNCLAIMED_SECONDS", 0.05)
    refused: list[str] = []

    async def reach(one: Instance) -> SandboxShim:
        if len(refused) < refusals:
            refused.append(one.id)
            raise Unavailable("not now")
        return await really(one)

    really = Instance.reach
    creating = asyncio.create_task(pods.shims.create(NS, POD))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert await until(lambda: len(pods.shims))
    monkeypatch.setattr(Instance, "reach", reach)
    assert await until(lambda: not pods.shims._orders and len(pods.shims) == 0)
    await pods.clean()
    assert len(refused) == refusals


async def test_its_tasks_are_ended_all_at_once(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    await pods.ready()
    pids = [await pods.run("a", "sleep", "600"), await pods.run("b", "sleep", "600")]
    both = asyncio.Barrier(2)
    killed: list[str] = []
    really = pods.engine.manager.kill

    async def kill(namespace: str, id: str, signal: int, **rest: Any) -> None:
        await both.wait()
        killed.append(id)
        await really(namespace, id, signal, **rest)

    monkeypatch.setattr(pods.engine.manager, "kill", kill)
    await pods.shims.shutdown(NS, "pod")
    assert sorted(killed) == ["a", "b"]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    await pods.clean()


async def test_a_task_that_is_not_killed_in_time(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pods.ready()
    await pods.run("a", "sleep", "600")

    async def kill(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("supervisord.runtime.sandboxes._TASK_SECONDS", 0.2)
    monkeypatch.setattr(pods.engine.manager, "kill", kill)
    async with asyncio.timeout(60):
        await pods.shims.shutdown(NS, "pod")
    monkeypatch.undo()
    assert len(pods.shims) == 0
    assert await until(lambda: not len(pods.engine.manager))  # it ended with its shim


async def test_a_foreign_shim(pods: Pods, program: Program) -> None:
    name = program(OURS + NEWER + MAIN)
    record = replace(POD.sandbox, runtime=Runtime(name))
    await pods.shims.create(NS, replace(POD, sandbox=record))
    started = await pods.shims.start(NS, "pod")
    assert started.version == 3
    pids = [await pods.run("a", "sleep", "600"), await pods.run("b", "sleep", "600", runtime=name)]
    assert [shim_of(pid) for pid in pids] == [started.pid, started.pid]
    await pods.restart()
    assert (await pods.shims.status(NS, "pod")).state == "SANDBOX_READY"
    await pods.engine.remove("a")
    await pods.shims.stop(NS, "pod")
    assert (await pods.engine.manager.delete(NS, "b")).exit_status == 137
    assert Path(f"/proc/{started.pid}").exists()
    await pods.shims.shutdown(NS, "pod")
    assert await until(lambda: not Path(f"/proc/{started.pid}").exists())
    await pods.clean()


async def test_a_foreign_shim_that_is_killed(pods: Pods, program: Program) -> None:
    record = replace(POD.sandbox, runtime=Runtime(program(OURS + NEWER + MAIN)))
    await pods.shims.create(NS, replace(POD, sandbox=record))
    started = await pods.shims.start(NS, "pod")
    os.kill(started.pid, signal.SIGKILL)
    exit = await asyncio.wait_for(pods.shims.wait(NS, "pod"), 10)
    assert exit.exit_status == 137
    assert (await pods.shims.status(NS, "pod")).state == "SANDBOX_NOTREADY"


@pytest.mark.parametrize("name", ["/usr/bin/containerd-shim-runc-v2"])
async def test_a_shim_that_knows_no_sandboxes(pods: Pods, name: str) -> None:
    if not Path(name).exists():
        pytest.skip(f"{name} is not installed")
    with pytest.raises((Unimplemented, Unknown)):
        await pods.shims.create(NS, CreateSandbox(Sandbox("pod", Runtime(name))))
    await pods.clean()
    await pods.ready()
