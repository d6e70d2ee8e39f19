"""Daemons that go away and come back, shims that die, and what is half-made."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from protos.containerd.events import events_pb2
from supervisord.contracts.errors import Unavailable
from supervisord.contracts.tasks import Status, Stdio
from supervisord.contracts.typed import TypedValue
from supervisord.events.fields import decode
from supervisord.linux import cgroups, process
from supervisord.runtime.launch import connect
from supervisord.runtime.shim import Shim

from .conftest import CGROUP, NS, SPEC_URL, Engine, needs_root, spec, told, until

pytestmark = needs_root


def shim_pid(engine: Engine, id: str) -> int:
    return engine.manager._tasks[NS, id].record.pid


async def until_listed(engine: Engine, *statuses: Status) -> None:
    for _ in range(500):
        if [task.status for task in await engine.manager.list(NS)] == list(statuses):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await engine.manager.list(NS))


async def test_a_restart_loses_nothing(engine: Engine) -> None:
    pid = await engine.run("web", "sleep", "60")
    shim = shim_pid(engine, "web")
    await engine.restart()
    assert shim_pid(engine, "web") == shim
    await until_listed(engine, Status.RUNNING)
    (task,) = await engine.manager.list(NS)
    assert task.pid == pid
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await engine.manager.kill(NS, "web", 9)
    assert (await waiting).exit_status == 137
    await engine.manager.delete(NS, "web")
    await engine.clean()


async def test_an_exit_while_the_daemon_was_away(engine: Engine) -> None:
    pid = await engine.run("web", "sh", "-c", "sleep 0.4; exit 9")
    await engine.close()
    assert await until(lambda: process.start_time(pid) is None)
    events = engine.exchange.subscribe(['topic=="/tasks/exit"'])
    await engine.open()
    ((_, event),) = await told(events, 1)
    assert (event.container_id, event.pid, event.exit_status) == ("web", pid, 9)
    assert (await engine.manager.wait(NS, "web")).exit_status == 9
    assert [task.exit_status for task in await engine.manager.list(NS)] == [9]
    assert (await engine.manager.delete(NS, "web")).exit_status == 9


async def test_the_exit_that_a_dead_shim_wrote_down(engine: Engine) -> None:
    await engine.run("web", "sh", "-c", "exit 5")
    await engine.manager.wait(NS, "web")
    shim = shim_pid(engine, "web")
    await engine.close()
    os.kill(shim, signal.SIGKILL)
    events = engine.exchange.subscribe(['topic=="/tasks/delete"'])  # the exit may have been told
    await engine.open()
    ((_, deleted),) = await told(events, 1)
    assert deleted.exit_status == 5
    await engine.clean()


async def test_a_task_that_was_deleted_and_not_forgotten(engine: Engine) -> None:
    """The daemon died between the shim's answer and the removal of the bundle."""
    await engine.run("web", "true")
    await engine.manager.wait(NS, "web")
    shim = engine.manager._tasks[NS, "web"].shim
    assert shim is not None
    await shim.delete()
    await engine.restart()
    await until_listed(engine)
    await engine.clean()


@pytest.mark.parametrize("stage", ["no record", "dead shim", "created"])
async def test_half_made_tasks_are_removed(engine: Engine, stage: str) -> None:
    request = engine.container("web", "sleep", "60")
    pid = 0
    if stage == "created":
        pid = await engine.manager.create(NS, request)
        task = engine.manager._tasks[NS, "web"]
        task.bundle.write_record(replace(task.record, pid=0, start_time=0, init_pid=0))
    else:
        bundle = Path(engine.settings.state, "tasks", NS, "web")
        (bundle / "rootfs").mkdir(parents=True)
        if stage == "dead shim":
            (bundle / "shim.json").write_text('{"address": "/nowhere/to/be/found"}')
    await engine.restart()
    # a create of the same name waits for the removal and succeeds
    again = await engine.manager.create(NS, request)
    assert again != pid
    if pid:
        assert process.start_time(pid) is None
    await engine.remove("web")
    await engine.clean()


async def test_what_a_half_made_task_had_is_removed(engine: Engine) -> None:
    """The daemon and the shim died in the middle: process, mounts, control groups, the runtime's
    state and the socket are there, and nobody who knows of them."""
    pid = await engine.run("web", "sleep", "60")
    task = engine.manager._tasks[NS, "web"]
    shim = task.record.pid
    groups = list(Path(cgroups.ROOT).glob(f"*/{CGROUP}/web"))
    groups += list(Path(cgroups.ROOT).glob(f"{CGROUP}/web"))
    assert groups
    await engine.close()
    task.bundle.write_record(replace(task.record, pid=0, start_time=0, init_pid=0, init_start=0))
    os.kill(shim, signal.SIGKILL)
    assert await until(lambda: process.start_time(shim) is None)
    assert process.start_time(pid) is not None
    await engine.open()
    await engine.clean()  # bundle, mounts, runtime state, socket
    assert process.start_time(pid) is None
    assert await until(lambda: not any(group.exists() for group in groups))
    await engine.run("web", "true")
    assert (await engine.manager.wait(NS, "web")).exit_status == 0


async def test_damaged_records_are_not_fatal(engine: Engine) -> None:
    await engine.run("good", "sleep", "60")
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"address": "/x", "init_pid": 1}')):
        bundle = Path(engine.settings.state, "tasks", NS, name)
        bundle.mkdir()
        (bundle / "shim.json").write_text(text)
    (Path(engine.settings.state) / "tasks" / NS / "file").touch()
    await engine.restart()
    await until_listed(engine, Status.RUNNING)
    (Path(engine.settings.state) / "tasks" / NS / "file").unlink()


async def test_a_stuck_shim_delays_nobody(engine: Engine) -> None:
    await engine.run("stuck", "sleep", "60")
    await engine.run("good", "sleep", "60")
    shim = shim_pid(engine, "stuck")
    os.kill(shim, signal.SIGSTOP)
    try:
        await engine.close()
        start = time.monotonic()
        await engine.open()
        assert time.monotonic() - start < 1
        await asyncio.wait_for(engine.manager.get(NS, "good"), 1)
        listed = {task.container_id: task.status for task in await engine.manager.list(NS)}
        assert listed == {"stuck": Status.UNKNOWN, "good": Status.RUNNING}
        assert time.monotonic() - start < 4
    finally:
        os.kill(shim, signal.SIGCONT)
    await until_listed(engine, Status.RUNNING, Status.RUNNING)


async def test_a_lost_connection_is_found_again(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    shim = engine.manager._tasks[NS, "web"].shim
    assert shim is not None
    shim.client.abort()
    await asyncio.sleep(0)
    assert (await engine.manager.get(NS, "web")).status is Status.RUNNING
    await engine.manager.kill(NS, "web", 9)
    assert (await asyncio.wait_for(waiting, 5)).exit_status == 137


async def test_close_answers_who_waits(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    await engine.restart()
    with pytest.raises((asyncio.CancelledError, Unavailable)):
        await waiting


async def test_events_of_the_time_without_a_daemon(engine: Engine) -> None:
    """All of them, each once, in order, with the times at which things happened."""
    pid = await engine.run("web", "sleep", "60")
    task = engine.manager._tasks[NS, "web"]
    record = task.record
    await engine.close()
    client = await connect(record.address, 5)
    shim = Shim(client, NS, "web", record.version)
    process_spec = TypedValue(
        SPEC_URL, json.dumps(spec("web", ["sh", "-c", "exit 3"])["process"]).encode()
    )
    for exec_id in ("one", "two"):
        await shim.exec(exec_id, Stdio(), process_spec)
        await shim.start(exec_id)
        assert (await shim.wait(exec_id)).exit_status == 3
    await shim.kill(9)
    assert (await shim.wait()).exit_status == 137
    shim.close()
    await asyncio.sleep(0.2)  # whoever waited may know before the event is made
    back = time.time_ns()
    subscription = engine.exchange.subscribe(['topic~="/tasks/(exec|exit|delete)"'])
    await engine.open()
    events = [await asyncio.wait_for(anext(subscription), 20) for _ in range(7)]
    kinds = ["exec-added", "exec-started", "exit"]
    assert [event.topic for event in events] == [
        f"/tasks/{kind}" for kind in [*kinds, *kinds, "exit"]
    ]
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    assert times[-1] < back
    last = decode(events[-1].event)
    assert isinstance(last, events_pb2.TaskExit)
    assert (last.pid, last.exit_status) == (pid, 137)
    await engine.manager.delete(NS, "web")
    assert (await asyncio.wait_for(anext(subscription), 20)).topic == "/tasks/delete"
    await subscription.aclose()


async def test_a_half_made_task_stays_until_its_init_is_gone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime cannot end init: the bundle is what knows of it, so nobody gets the name."""
    monkeypatch.setattr("supervisord.runtime.burial._GONE_SECONDS", 0.1)
    pid = await engine.run("web", "sleep", "60")
    task = engine.manager._tasks[NS, "web"]
    shim = task.record.pid
    await engine.close()
    task.bundle.write_record(replace(task.record, pid=0, start_time=0, init_pid=0, init_start=0))
    notes = Path(task.bundle.path, "runtime.json")
    real = notes.read_text()
    notes.write_text(json.dumps({**json.loads(real), "binary": "/bin/false"}))
    os.kill(shim, signal.SIGKILL)
    assert await until(lambda: process.start_time(shim) is None)
    await engine.open()
    request = engine.container("web", "sleep", "60")
    with pytest.raises(Unavailable, match=f"web.*process {pid} "):
        await engine.manager.create(NS, request)
    await engine.restart()  # the next daemon finds it too
    with pytest.raises(Unavailable, match=f"process {pid} "):
        await engine.manager.create(NS, request)
    assert process.start_time(pid) is not None
    draft = notes.with_suffix(".tmp")
    draft.write_text(real)
    draft.rename(notes)
    assert await until(lambda: process.start_time(pid) is None, 30)
    await engine.clean()
    await engine.run("web", "true")
    assert (await engine.manager.wait(NS, "web")).exit_status == 0
