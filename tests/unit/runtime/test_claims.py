"""Tasks that nobody came for, across restarts of the daemon and deaths of their shims."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.errors import AlreadyExists
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.tasks import CreateTask, Stdio
from supervisord.contracts.typed import TypedValue
from supervisord.linux import process
from supervisord.runtime import claims
from supervisord.runtime.orders import Order
from supervisord.runtime.zygote import Zygote

from .conftest import NS, Engine, needs_root, until
from .test_faults import Engines, Faulty

SOON = 0.1


async def abandoned(zygote: Zygote, engines: Engines) -> tuple[Engine, CreateTask, int]:
    """An engine with a task whose creator went away, the request it was made for, init's pid."""
    spawner = Faulty(zygote, "hold")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    lost = asyncio.ensure_future(engine.manager.create(NS, request))
    await asyncio.sleep(0.05)
    lost.cancel()
    await asyncio.wait([lost])
    spawner.held.set()
    assert await until(lambda: (NS, "web") in engine.manager._tasks)
    return engine, request, pid_of(engine)


def pid_of(engine: Engine) -> int:
    return engine.manager._tasks[NS, "web"].record.init_pid


def unlike(request: CreateTask) -> CreateTask:
    return replace(request, stdio=Stdio(stdout="file:///dev/null"))


@needs_root
async def test_a_retry_after_a_restart_takes_it(zygote: Zygote, engines: Engines) -> None:
    engine, request, pid = await abandoned(zygote, engines)
    mark = Path(engine.manager._tasks[NS, "web"].bundle.path, "unclaimed")
    assert mark.exists()
    await engine.restart()
    assert await engine.manager.create(NS, request) == pid
    assert not mark.exists()
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)
    assert await engine.manager.start(NS, "web") == pid


@needs_root
@pytest.mark.parametrize("restarts", [0, 1])
async def test_another_request_replaces_it(zygote: Zygote, engines: Engines, restarts: int) -> None:
    engine, request, pid = await abandoned(zygote, engines)
    for _ in range(restarts):
        await engine.restart()
    assert await engine.manager.create(NS, unlike(request)) != pid
    assert process.start_time(pid) is None


@needs_root
async def test_it_is_removed_after_a_restart(
    zygote: Zygote, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, _ = await abandoned(zygote, engines)
    monkeypatch.setattr(claims, "UNCLAIMED_SECONDS", SOON)
    await engine.restart()
    await engine.clean()
    assert not len(engine.manager)


@needs_root
async def test_once_used_it_stays(
    zygote: Zygote, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request, pid = await abandoned(zygote, engines)
    monkeypatch.setattr(claims, "UNCLAIMED_SECONDS", SOON)
    await engine.manager.get(NS, "web")
    await engine.restart()
    await asyncio.sleep(SOON * 4)
    assert (await engine.manager.get(NS, "web")).pid == pid
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)


@needs_root
@pytest.mark.parametrize("alike", [True, False])
async def test_its_shim_dies(zygote: Zygote, engines: Engines, alike: bool) -> None:
    """The create does not keep the new shim, which it waits for, from the lock."""
    engine, request, pid = await abandoned(zygote, engines)
    task = engine.manager._tasks[NS, "web"]
    shim = task.shim
    assert shim is not None
    wanted = request if alike else unlike(request)
    async with engine.manager._locks.hold(task.key):
        creating = asyncio.ensure_future(engine.manager.create(NS, wanted))
        await asyncio.sleep(0.05)  # it is the first to wait for the lock
        os.kill(task.record.pid, signal.SIGKILL)
        await shim.closed
    got = await creating
    assert (got == pid) is alike
    assert process.start_time(got) is not None


@needs_root
async def test_what_may_not_have_been_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that dies behind the record looks like one that has answered: an equal request
    gets the task, any other does not, and nobody removes it."""
    monkeypatch.setattr(claims, "UNCLAIMED_SECONDS", SOON)
    request = engine.container("web", "sleep", "60")
    pid = await engine.manager.create(NS, request)
    await engine.restart()
    await asyncio.sleep(SOON * 4)
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, unlike(request))
    assert await engine.manager.create(NS, request) == pid
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)
    await engine.manager.start(NS, "web")
    await engine.restart()
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)


def test_digests() -> None:
    spec = TypedValue("spec", b"{}")
    container = Container("web", {"a": "1", "b": "2"}, runtime=Runtime("runc"), spec=spec)
    request = CreateTask("web", [Mount("bind", "/x", ("ro",))], Stdio("in"))
    digest = Order("ns", container, request).digest
    same = replace(container, labels={"b": "2", "a": "1"})
    assert Order("ns", same, replace(request, rootfs=tuple(request.rootfs))).digest == digest
    others = [
        Order("ns", replace(container, updated_at=1), request),
        Order("ns", replace(container, spec=TypedValue("spec", b"[]")), request),
        Order("ns", container, unlike(request)),
        Order("ns", container, replace(request, rootfs=())),
        Order("ns", container, replace(request, options=TypedValue("o", b"\xff"))),
    ]
    assert len({digest, *(other.digest for other in others)}) == 6
