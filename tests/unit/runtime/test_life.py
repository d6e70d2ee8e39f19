"""The life of tasks with real shims and containers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unknown,
)
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.tasks import CreateTask, Status, Stdio
from supervisord.contracts.typed import TypedValue
from supervisord.linux import process

from .conftest import NS, Engine, needs_root, spec, told

pytestmark = needs_root


async def test_a_whole_life_and_its_events(engine: Engine) -> None:
    events = engine.exchange.subscribe()
    request = engine.container("web", "sh", "-c", "exit 42")
    pid = await engine.manager.create(NS, request)
    assert process.start_time(pid) is not None
    created = await engine.manager.get(NS, "web")
    assert (created.pid, created.status) == (pid, Status.CREATED)
    assert await engine.manager.start(NS, "web") == pid
    before = time.time_ns()
    exit = await engine.manager.wait(NS, "web")
    assert (exit.pid, exit.exit_status) == (pid, 42)
    assert before - 5_000_000_000 < exit.exited_at <= time.time_ns()
    (listed,) = await engine.manager.list(NS)
    assert (listed.status, listed.exit_status) == (Status.STOPPED, 42)
    deleted = await engine.manager.delete(NS, "web")
    assert (deleted.pid, deleted.exit_status) == (pid, 42)
    assert not await engine.manager.list(NS)
    topics = await told(events, 4)
    assert [topic for topic, _ in topics] == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ]
    assert topics[2][1].exit_status == 42
    await engine.clean()


async def test_the_next_of_a_name_begins_when_the_end_of_the_last_one_is_over(
    engine: Engine,
) -> None:
    await engine.run("web", "true")
    await engine.manager.wait(NS, "web")
    shim = engine.manager._tasks[NS, "web"].record
    await engine.manager.delete(NS, "web")
    assert process.alive(shim.pid, shim.start_time), "its end comes behind the answer"
    await engine.manager.create(NS, engine.container("web", "true"))
    assert not process.alive(shim.pid, shim.start_time)
    await engine.remove("web")
    await engine.clean()


async def test_the_name_is_free_as_soon_as_delete_has_answered(engine: Engine) -> None:
    for _ in range(3):
        await engine.run("web", "true")
        await engine.manager.wait(NS, "web")
        await engine.manager.delete(NS, "web")
    await engine.clean()


async def test_exec(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    process_spec = spec("web", ["sh", "-c", "exit 7"])["process"]
    value = TypedValue("", json.dumps(process_spec).encode())
    await engine.manager.exec(NS, "web", "x1", Stdio(), value)
    with pytest.raises(AlreadyExists):
        await engine.manager.exec(NS, "web", "x1", Stdio(), value)
    pid = await engine.manager.start(NS, "web", "x1")
    exit = await engine.manager.wait(NS, "web", "x1")
    assert exit.exit_status == 7
    deleted = await engine.manager.delete_process(NS, "web", "x1")
    assert (deleted.exec_id, deleted.pid, deleted.exit_status) == ("x1", pid, 7)
    with pytest.raises(NotFound):
        await engine.manager.wait(NS, "web", "x1")
    with pytest.raises(InvalidArgument, match="exec_id"):
        await engine.manager.exec(NS, "web", "a b", Stdio(), value)
    pids = await engine.manager.pids(NS, "web")
    assert len(pids) == 1
    (metric,) = await engine.manager.metrics(NS, ["id==web"])
    assert metric.data.type_url.startswith("io.containerd.cgroups.v")
    assert not await engine.manager.metrics(NS, ["id==other"])
    await engine.manager.pause(NS, "web")
    assert (await engine.manager.get(NS, "web")).status is Status.PAUSED
    await engine.manager.resume(NS, "web")


async def test_what_is_refused(engine: Engine) -> None:
    with pytest.raises(NotFound, match="container"):
        await engine.manager.create(NS, CreateTask("none"))
    with pytest.raises(NotFound, match="container"):
        await engine.manager.start(NS, "none")
    request = engine.container("web", "sleep", "60")
    with pytest.raises(NotFound, match=r"^task web not found$"):
        await engine.manager.delete(NS, "web")
    await engine.manager.create(NS, request)
    with pytest.raises(AlreadyExists, match=r"^task web: already exists$"):
        await engine.manager.create(NS, request)
    await engine.manager.start(NS, "web")
    with pytest.raises(FailedPrecondition):
        await engine.manager.delete(NS, "web")
    with pytest.raises(InvalidArgument, match="container_id"):
        await engine.manager.create(NS, CreateTask("../x"))
    with pytest.raises(InvalidArgument, match="resources"):
        await engine.manager.update(NS, "web", TypedValue())


@pytest.mark.parametrize(
    ("runtime", "kind"),
    [
        ("", InvalidArgument),
        ("x", InvalidArgument),
        ("a/b.c", InvalidArgument),
        ("io.x.v1", NotFound),
    ],
)
async def test_runtimes_that_are_not_there(engine: Engine, runtime: str, kind: type[Error]) -> None:
    request = engine.container("web", "true", runtime=runtime)
    with pytest.raises(kind, match="runtime"):
        await engine.manager.create(NS, request)
    await engine.clean()


@pytest.mark.parametrize("what", ["command", "mount", "spec"])
async def test_a_failed_create_leaves_nothing_and_a_retry_works(engine: Engine, what: str) -> None:
    request = engine.container("web", "nothing-of-that-name")
    if what == "mount":
        request = CreateTask("web", [Mount("bind", "/nowhere/at/all", ("rbind",))])
    if what == "spec":
        broken = engine.containers.all[NS, "web"]
        object.__setattr__(broken, "spec", TypedValue("", b'{"linux": 3}'))
    expected = {"command": Unknown, "mount": Unknown, "spec": InvalidArgument}[what]
    with pytest.raises(expected) as failure:
        await engine.manager.create(NS, request)
    if what == "command":
        assert "nothing-of-that-name" in failure.value.message
    assert not await engine.manager.list(NS)
    await engine.clean()
    await engine.run("web", "true")
    assert (await engine.manager.wait(NS, "web")).exit_status == 0


async def test_an_exit_that_nobody_started(engine: Engine) -> None:
    """Deleting a created task kills it."""
    pid = await engine.manager.create(NS, engine.container("web", "sleep", "60"))
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    await engine.manager.kill(NS, "web", 9)
    assert (await waiting).exit_status == 137
    await engine.manager.delete(NS, "web")
    assert process.start_time(pid) is None


async def test_eight_at_a_time(engine: Engine) -> None:
    async def life(id: str) -> int:
        await engine.run(id, "true")
        exit = await engine.manager.wait(NS, id)
        await engine.manager.delete(NS, id)
        return exit.exit_status

    assert await asyncio.gather(*(life(f"c{n}") for n in range(8))) == [0] * 8
    await engine.clean()


async def test_a_cancelled_waiter_leaves_the_others(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    first = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    second = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    await engine.manager.kill(NS, "web", 15)
    await engine.manager.kill(NS, "web", 9)
    assert (await asyncio.wait_for(second, 5)).exit_status == 137
