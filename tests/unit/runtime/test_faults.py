"""Creation that fails, hangs or loses its caller; the retry with the same id must succeed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from supervisord.contracts.errors import AlreadyExists, Error, Unavailable, Unknown
from supervisord.contracts.tasks import Exit, Stdio
from supervisord.contracts.workers import ShimSpawner
from supervisord.linux import process
from supervisord.runtime import claims
from supervisord.runtime.shim import Shim
from supervisord.runtime.zygote import Zygote

from .conftest import NS, Engine, needs_root, until

pytestmark = needs_root


class Faulty:
    """A spawner that obeys a script, then is the real one."""

    def __init__(self, real: ShimSpawner, *faults: str) -> None:
        self.real = real
        self.faults = list(faults)
        self.held = asyncio.Event()
        self.pids: list[int] = []

    async def spawn(
        self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
    ) -> int:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refuse":
            raise Unavailable("zygote: refused")
        if fault == "dead":  # a worker that ends without a word
            child = await asyncio.create_subprocess_exec("true")
            await child.wait()
            return child.pid
        if fault == "hold":
            await self.held.wait()
        pid = await self.real.spawn(kind, arguments, fds)
        self.pids.append(pid)
        if fault == "kill":
            os.kill(pid, signal.SIGKILL)
        if fault == "kill later":  # stopped until then: it must not be done before it dies
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.03)
            os.kill(pid, signal.SIGKILL)
        return pid

    def replenish(self, kind: str) -> None:
        self.real.replenish(kind)


Engines = Callable[[ShimSpawner], Engine]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("refuse", Unavailable), ("dead", Unknown), ("kill", Unknown), ("kill later", Unknown)],
)
async def test_a_shim_that_does_not_come_up(
    zygote: Zygote, engines: Engines, fault: str, kind: type[Error]
) -> None:
    engine = engines(Faulty(zygote, fault))
    await engine.open()
    request = engine.container("web", "sleep", "60")
    with pytest.raises(kind):
        await engine.manager.create(NS, request)
    assert not await engine.manager.list(NS)
    await engine.clean()
    pid = await engine.manager.create(NS, request)
    assert process.start_time(pid) is not None


async def test_a_retry_takes_what_its_lost_predecessor_made(
    zygote: Zygote, engines: Engines
) -> None:
    spawner = Faulty(zygote, "hold")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    first = asyncio.ensure_future(engine.manager.create(NS, request))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(engine.manager.create(NS, request))
    await asyncio.sleep(0.05)
    spawner.held.set()
    pid = await second
    assert process.start_time(pid) is not None
    assert len(spawner.pids) == 1
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)


async def test_creates_at_a_time_are_one(zygote: Zygote, engines: Engines) -> None:
    spawner = Faulty(zygote)
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    pids = await asyncio.gather(*(engine.manager.create(NS, request) for _ in range(3)))
    assert len(set(pids)) == len(spawner.pids) == 1
    with pytest.raises(AlreadyExists):
        await engine.manager.create(NS, request)


async def test_creates_that_differ_are_not_one(engine: Engine) -> None:
    request = engine.container("web", "sleep", "60")
    other = replace(request, stdio=Stdio(stdout="file:///dev/null"))
    wishes = (request, other, other)
    results = await asyncio.gather(
        *(engine.manager.create(NS, wish) for wish in wishes), return_exceptions=True
    )
    assert isinstance(results[0], int)
    assert [type(result) for result in results[1:]] == [AlreadyExists] * 2


async def test_creates_at_a_time_fail_together(zygote: Zygote, engines: Engines) -> None:
    spawner = Faulty(zygote, "refuse")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    results = await asyncio.gather(
        *(engine.manager.create(NS, request) for _ in range(2)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Unavailable] * 2
    await engine.clean()
    await engine.manager.create(NS, request)


async def test_of_two_callers_one_may_go_away(zygote: Zygote, engines: Engines) -> None:
    spawner = Faulty(zygote, "hold")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    first, second = (asyncio.ensure_future(engine.manager.create(NS, request)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    spawner.held.set()
    await second
    assert not engine.manager._tasks[NS, "web"].is_unclaimed


@pytest.mark.parametrize("refusals", [0, 2])
async def test_what_nobody_comes_back_for_is_removed(
    zygote: Zygote, engines: Engines, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """Also where its shim cannot do it at first."""
    monkeypatch.setattr(claims, "UNCLAIMED_SECONDS", 0.1)
    refused: list[str] = []

    async def delete(shim: Shim, exec_id: str = "") -> Exit:
        if len(refused) < refusals:
            refused.append(shim.id)
            raise Unavailable("not now")
        return await really(shim, exec_id)

    really = Shim.delete
    monkeypatch.setattr(Shim, "delete", delete)
    spawner = Faulty(zygote, "hold")
    engine = engines(spawner)
    await engine.open()
    first = asyncio.ensure_future(engine.manager.create(NS, engine.container("web", "sleep", "60")))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    spawner.held.set()
    assert await until(lambda: spawner.pids)
    await engine.clean()
    assert len(refused) == refusals


@pytest.mark.parametrize("what", ["request", "container"])
async def test_another_request_replaces_what_nobody_claims(
    zygote: Zygote, engines: Engines, what: str
) -> None:
    spawner = Faulty(zygote, "hold")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    first = asyncio.ensure_future(engine.manager.create(NS, request))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    spawner.held.set()
    if what == "request":
        request = replace(request, stdio=Stdio(stdout="file:///dev/null"))
    else:
        engine.container("web", "sleep", "61")
    pid = await engine.manager.create(NS, request)
    assert process.start_time(pid) is not None
    assert len(spawner.pids) == 2
    await engine.remove("web")
    await engine.clean()


async def test_a_waiter_for_the_lock_that_goes_away(zygote: Zygote, engines: Engines) -> None:
    """Its creation has not begun, and never does."""
    spawner = Faulty(zygote, "hold", "refuse")
    engine = engines(spawner)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    first = asyncio.ensure_future(engine.manager.create(NS, request))
    await asyncio.sleep(0.05)
    other = replace(request, stdio=Stdio(stdout="file:///dev/null"))
    second = asyncio.ensure_future(engine.manager.create(NS, other))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.wait([second])
    spawner.held.set()
    await first
    assert spawner.faults == ["refuse"]
