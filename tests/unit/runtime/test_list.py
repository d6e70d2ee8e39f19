"""Lists are answered from memory, and still tell the truth."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from protos.containerd.events import events_pb2
from supervisord.contracts.errors import NotFound
from supervisord.contracts.events import Envelope
from supervisord.contracts.tasks import Status
from supervisord.contracts.typed import pack
from supervisord.runtime.sight import News

from .conftest import NS, Engine, needs_root, until

pytestmark = needs_root


@contextmanager
def deaf(engine: Engine, id: str) -> Iterator[None]:
    """A shim that answers nobody while the block runs."""
    pid = engine.manager._tasks[NS, id].record.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def listed(engine: Engine, id: str, seconds: float = 1.0) -> Status:
    """The state in a list; a shim that had to be asked and does not answer takes longer."""
    async with asyncio.timeout(seconds):
        return {task.container_id: task.status for task in await engine.manager.list(NS)}[id]


async def test_a_life_is_followed_without_a_question(engine: Engine) -> None:
    await engine.manager.create(NS, engine.container("a", "sleep", "100"))
    with deaf(engine, "a"):
        assert await listed(engine, "a") is Status.CREATED
    await engine.manager.start(NS, "a")
    assert await until(lambda: engine.exchange.topics.get("/tasks/start"))
    with deaf(engine, "a"):
        assert await listed(engine, "a") is Status.RUNNING
    subscription = engine.exchange.subscribe(['topic=="/tasks/exit"'])
    os.kill(engine.manager._tasks[NS, "a"].record.init_pid, signal.SIGKILL)
    await asyncio.wait_for(anext(subscription), 10)
    with deaf(engine, "a"):
        assert await listed(engine, "a") is Status.STOPPED
        (task,) = await engine.manager.list(NS)
        assert (task.exit_status, task.exited_at > 0) == (137, True)
        assert await engine.manager.get(NS, "a") == task
    await engine.manager.delete(NS, "a")
    assert await engine.manager.list(NS) == []


async def test_an_end_that_was_waited_for_is_listed(engine: Engine) -> None:
    for number in range(10):
        id = f"w{number}"
        await engine.run(id, "true")
        await engine.manager.wait(NS, id)
        assert await listed(engine, id) is Status.STOPPED
        await engine.manager.delete(NS, id)


async def test_who_is_refused_sees_why(engine: Engine) -> None:
    await engine.run("k", "sleep", "100")
    os.kill(engine.manager._tasks[NS, "k"].record.init_pid, signal.SIGKILL)
    for _ in range(200):
        try:
            await engine.manager.kill(NS, "k", 0)
        except NotFound:
            break
        await asyncio.sleep(0.001)
    assert await listed(engine, "k", 5) is Status.STOPPED


async def test_a_pause_is_asked_about_once(engine: Engine) -> None:
    await engine.run("p", "sleep", "100")
    await engine.manager.pause(NS, "p")
    assert await listed(engine, "p", 5) is Status.PAUSED
    task = engine.manager._tasks[NS, "p"]
    # The event of the pause may come after that, and raises doubt once more.
    assert await until(lambda: engine.exchange.topics.get("/tasks/paused"))
    assert await listed(engine, "p", 5) is Status.PAUSED
    with deaf(engine, "p"):
        assert await listed(engine, "p") is Status.PAUSED
    await engine.manager.resume(NS, "p")
    assert await listed(engine, "p", 5) is Status.RUNNING
    assert not task.sight.is_changing


async def test_doubt_while_others_are_asked_drops_nobody(engine: Engine) -> None:
    for id in ("slow", "sure"):
        await engine.run(id, "sleep", "100")
    tasks = engine.manager._tasks
    assert await until(lambda: engine.exchange.topics.get("/tasks/start", 0) >= 2)
    assert len(await engine.manager.list(NS)) == 2
    tasks[NS, "slow"].sight.feed(News.DOUBT)
    with deaf(engine, "slow"):
        listing = asyncio.ensure_future(engine.manager.list(NS))
        await asyncio.sleep(0.05)
        tasks[NS, "sure"].sight.feed(News.DOUBT)
    listed = {task.container_id: task.status for task in await listing}
    assert listed == {"slow": Status.RUNNING, "sure": Status.RUNNING}


async def test_a_new_daemon_asks_and_then_knows(engine: Engine) -> None:
    await engine.run("r", "sleep", "100")
    await engine.restart()
    assert await until(lambda: engine.manager._tasks[NS, "r"].shim)
    assert await listed(engine, "r", 5) is Status.RUNNING
    with deaf(engine, "r"):
        assert await listed(engine, "r") is Status.RUNNING


async def test_a_false_report_of_an_end_is_not_believed(engine: Engine) -> None:
    """A late one of an earlier container of the same name, with a pid that is in use again."""
    pid = await engine.run("f", "sleep", "100")
    for told in (pid, pid + 1):
        event = events_pb2.TaskExit(container_id="f", id="f", pid=told, exit_status=1)
        engine.exchange.forward(Envelope(time.time_ns(), NS, "/tasks/exit", pack(event)))
        assert await listed(engine, "f", 5) is Status.RUNNING
    engine.exchange.forward(Envelope(time.time_ns(), NS, "/tasks/exit", pack(event)))
    with deaf(engine, "f"):
        assert await listed(engine, "f") is Status.RUNNING
