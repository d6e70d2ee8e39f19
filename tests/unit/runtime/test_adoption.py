"""A shim is killed and its container lives: a new shim takes over, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisord.contracts.errors import NotFound, Unavailable, Unknown
from supervisord.contracts.tasks import CreateTask, Status, Stdio
from supervisord.contracts.typed import TypedValue
from supervisord.contracts.workers import ShimSpawner
from supervisord.linux import cgroups, process
from supervisord.runtime.zygote import Zygote

from .conftest import CGROUP, NS, SPEC_URL, Engine, needs_root, spec, told, until

pytestmark = needs_root

RUNTIMES = ["runc", *(["crun"] if shutil.which("crun") and cgroups.is_unified() else [])]
"""crun refuses hosts that have controllers in both hierarchies."""


@pytest.fixture(params=RUNTIMES)
async def any_engine(
    request: pytest.FixtureRequest, zygote: Zygote, engines: Callable[[ShimSpawner], Engine]
) -> AsyncIterator[Engine]:
    engine = engines(zygote)
    engine.runtime = request.param
    await engine.open()
    yield engine


def shim_of(engine: Engine, id: str = "web") -> int:
    return engine.manager._tasks[NS, id].record.pid


async def kill_shim(engine: Engine, id: str = "web") -> int:
    """Kills a shim and waits for the next one."""
    old = shim_of(engine, id)
    os.kill(old, signal.SIGKILL)
    task = engine.manager._tasks[NS, id]
    assert await until(lambda: task.shim is not None and task.record.pid not in (0, old))
    return old


def process_spec(*args: str) -> TypedValue:
    return TypedValue(SPEC_URL, json.dumps(spec("", args)["process"]).encode())


async def exec_(engine: Engine, exec_id: str, *args: str, stdio: Stdio | None = None) -> int:
    await engine.manager.exec(NS, "web", exec_id, stdio or Stdio(), process_spec(*args))
    return await engine.manager.start(NS, "web", exec_id)


async def test_a_container_outlives_its_shim(any_engine: Engine) -> None:
    engine = any_engine
    events = engine.exchange.subscribe(['topic~="/tasks/(exit|delete)$"'])
    pid = await engine.run("web", "sleep", "60")
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    await kill_shim(engine)
    (task,) = await engine.manager.list(NS)
    assert (task.pid, task.status) == (pid, Status.RUNNING)
    assert pid in [info.pid for info in await engine.manager.pids(NS, "web")]
    (metric,) = await engine.manager.metrics(NS)
    assert metric.data.value
    await engine.manager.update(NS, "web", TypedValue("", b'{"pids": {"limit": 50}}'))
    await engine.manager.pause(NS, "web")
    assert (await engine.manager.get(NS, "web")).status is Status.PAUSED
    await engine.manager.resume(NS, "web")
    await exec_(engine, "e", "sh", "-c", "exit 4")
    assert (await engine.manager.wait(NS, "web", "e")).exit_status == 4
    assert (await engine.manager.delete_process(NS, "web", "e")).exit_status == 4
    await engine.manager.kill(NS, "web", 9)
    exit = await asyncio.wait_for(waiting, 10)
    assert (exit.pid, exit.exit_status) == (pid, 137)
    assert (await engine.manager.delete(NS, "web")).exit_status == 137
    found = await told(events, 3)
    assert [(topic, event.pid, event.exit_status) for topic, event in found[1:]] == [
        ("/tasks/exit", pid, 137),
        ("/tasks/delete", pid, 137),
    ]
    await engine.clean()


async def test_the_exit_status_of_an_adopted_container(any_engine: Engine, tmp_path: Path) -> None:
    engine = any_engine
    pid = await engine.run("web", "sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.05; done")
    assert await until(Path(f"/proc/{pid}/task/{pid}/children").read_text)  # its trap is set
    await kill_shim(engine)
    await engine.manager.kill(NS, "web", signal.SIGTERM)
    exit = await asyncio.wait_for(engine.manager.wait(NS, "web"), 10)
    assert (exit.pid, exit.exit_status) == (pid, 42)
    bundle = Path(engine.settings.state, "tasks", NS, "web")
    assert json.loads((bundle / "exits" / "init.json").read_text())["exit_status"] == 42


def with_stdio(request: CreateTask, stdio: Stdio) -> CreateTask:
    return CreateTask(request.container_id, request.rootfs, stdio)


async def test_output_goes_on(any_engine: Engine, tmp_path: Path) -> None:
    """Neither the container nor its exec gets a SIGPIPE, and no line is lost or told twice."""
    engine = any_engine
    log, exec_log = tmp_path / "log", tmp_path / "exec-log"
    script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 3"
    request = engine.container("web", "sh", "-c", f"{script.replace('100', '200')}")
    await engine.manager.create(NS, with_stdio(request, Stdio(stdout=f"file://{log}")))
    await engine.manager.start(NS, "web")
    await exec_(engine, "e", "sh", "-c", script, stdio=Stdio(stdout=f"file://{exec_log}"))
    assert await until(lambda: exec_log.exists() and exec_log.read_text().count("\n") > 5)
    await kill_shim(engine)
    assert (await engine.manager.wait(NS, "web", "e")).exit_status == 3
    assert (await engine.manager.delete_process(NS, "web", "e")).exit_status == 3
    assert exec_log.read_text().splitlines() == [f"line {n}" for n in range(1, 101)]
    assert (await engine.manager.wait(NS, "web")).exit_status == 3
    assert (await engine.manager.delete(NS, "web")).exit_status == 3
    assert log.read_text().splitlines() == [f"line {n}" for n in range(1, 201)]
    await engine.clean()


async def test_fifos_are_opened_again(engine: Engine, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for path in paths.values():
        os.mkfifo(path)
    reader = os.open(paths["stdout"], os.O_RDWR | os.O_NONBLOCK)
    writer = os.open(paths["stdin"], os.O_RDWR | os.O_NONBLOCK)
    got = b""

    def read() -> bool:
        nonlocal got
        try:
            got += os.read(reader, 4096)
        except BlockingIOError:
            return False
        return True

    try:
        script = "trap 'read line; echo got $line' USR1; echo ready; while :; do sleep 0.05; done"
        request = engine.container("web", "sh", "-c", script)
        await engine.manager.create(NS, with_stdio(request, Stdio(paths["stdin"], paths["stdout"])))
        await engine.manager.start(NS, "web")
        assert await until(lambda: read() and got == b"ready\n")
        await kill_shim(engine)
        os.write(writer, b"again\n")
        await engine.manager.kill(NS, "web", signal.SIGUSR1)
        assert await until(lambda: read() and got == b"ready\ngot again\n"), got
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_shim_that_died_while_the_daemon_was_away(any_engine: Engine) -> None:
    engine = any_engine
    pid = await engine.run("web", "sleep", "60")
    exec_pid = await exec_(engine, "e", "sleep", "60")
    shim = shim_of(engine)
    await engine.close()
    os.kill(shim, signal.SIGKILL)
    assert await until(lambda: process.start_time(shim) is None)
    await engine.open()
    (task,) = await engine.manager.list(NS)
    assert (task.pid, task.status) == (pid, Status.RUNNING)
    assert (await engine.manager.get(NS, "web", "e")).pid == exec_pid
    await engine.manager.kill(NS, "web", 9, exec_id="e")
    assert (await engine.manager.wait(NS, "web", "e")).exit_status == 137
    await engine.restart()  # the new shim is found again, too
    assert (await engine.manager.get(NS, "web")).status is Status.RUNNING
    await engine.remove("web")
    await engine.clean()


async def test_states_before_and_after_running(engine: Engine) -> None:
    request = engine.container("web", "sh", "-c", "exit 6")
    await engine.manager.create(NS, request)
    await kill_shim(engine)
    assert (await engine.manager.get(NS, "web")).status is Status.CREATED
    await engine.manager.start(NS, "web")
    assert (await engine.manager.wait(NS, "web")).exit_status == 6
    await engine.manager.delete(NS, "web")
    await engine.run("paused", "sleep", "60")
    await engine.manager.pause(NS, "paused")
    await kill_shim(engine, "paused")
    assert (await engine.manager.get(NS, "paused")).status is Status.PAUSED
    await engine.manager.resume(NS, "paused")
    assert (await engine.manager.get(NS, "paused")).status is Status.RUNNING


async def test_execs_of_a_dead_shim(engine: Engine) -> None:
    """One runs, one has ended and was told, one ends with nobody there to see it."""
    events = engine.exchange.subscribe(['topic=="/tasks/exit"'])
    await engine.run("web", "sleep", "60")
    runs = await exec_(engine, "runs", "sleep", "60")
    ended = await exec_(engine, "ended", "sh", "-c", "exit 8")
    await engine.manager.wait(NS, "web", "ended")
    unseen = await exec_(engine, "unseen", "sleep", "60")
    os.kill(shim_of(engine), signal.SIGSTOP)
    os.kill(unseen, signal.SIGKILL)
    await kill_shim(engine)
    assert (await engine.manager.get(NS, "web", "runs")).pid == runs
    assert (await engine.manager.get(NS, "web", "ended")).exit_status == 8
    exit = await engine.manager.wait(NS, "web", "unseen")
    assert exit.exit_status in (137, 255)
    await engine.manager.delete_process(NS, "web", "ended")
    await exec_(engine, "ended", "true")  # its id is free again
    await engine.manager.wait(NS, "web", "ended")
    exits = await told(events, 3)
    assert [(event.id, event.pid) for _, event in exits[:2]] == [
        ("ended", ended),
        ("unseen", unseen),
    ]
    assert exits[2][1].id == "ended"
    assert exits[2][1].pid != ended  # the first was told once


async def test_init_ends_with_its_shim(engine: Engine) -> None:
    """Nobody is left to be its parent, yet its exit status is known."""
    events = engine.exchange.subscribe(['topic~="/tasks/(exit|delete)$"'])
    pid = await engine.run("web", "sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.02; done")
    assert await until(Path(f"/proc/{pid}/task/{pid}/children").read_text)  # its trap is set
    shim = shim_of(engine)
    os.kill(shim, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGTERM)
        assert await until(lambda: process.start_time(pid) is None)
    finally:
        os.kill(shim, signal.SIGKILL)
    found = await told(events, 2)
    assert [(topic, event.pid, event.exit_status) for topic, event in found] == [
        ("/tasks/exit", pid, 21),
        ("/tasks/delete", pid, 21),
    ]
    with pytest.raises(NotFound):
        await engine.manager.get(NS, "web")
    await engine.clean()


async def test_what_the_runtime_has_forgotten_is_ended(engine: Engine) -> None:
    events = engine.exchange.subscribe(['topic=="/tasks/exit"'])
    pid = await engine.run("web", "sleep", "60")
    await exec_(engine, "e", "sleep", "60")
    await asyncio.to_thread(shutil.rmtree, Path(engine.settings.runtime_root, NS, "web"))
    os.kill(shim_of(engine), signal.SIGKILL)
    assert await until(lambda: not engine.manager._tasks or process.start_time(pid) is None)
    (_, exec_event), (_, event) = await told(events, 2)
    assert (exec_event.id, exec_event.exit_status) == ("e", 137)
    assert (event.pid, event.exit_status) == (pid, 137)
    await engine.clean()


class FirstFails:
    """A spawner of which the shims that are to take over die at first."""

    def __init__(self, real: ShimSpawner) -> None:
        self.real = real
        self.deaths = 0

    async def spawn(self, kind: str, arguments: Any, fds: Any = ()) -> int:
        pid = await self.real.spawn(kind, arguments, fds)
        if "adopt" in arguments and self.deaths < 2:
            self.deaths += 1
            os.kill(pid, signal.SIGKILL)
        return pid

    def replenish(self, kind: str) -> None:
        self.real.replenish(kind)


async def test_the_new_shim_dies_too(
    zygote: Zygote, engines: Callable[[ShimSpawner], Engine]
) -> None:
    spawner = FirstFails(zygote)
    engine = engines(spawner)
    await engine.open()
    pid = await engine.run("web", "sleep", "60")
    await kill_shim(engine)
    assert spawner.deaths == 2
    assert (await engine.manager.get(NS, "web")).pid == pid


async def test_a_terminal_ends_with_its_shim(engine: Engine, tmp_path: Path) -> None:
    """The kernel hangs up; what goes on all the same is still ours, without a terminal."""
    fifo = str(tmp_path / "out")
    os.mkfifo(fifo)
    request = engine.container("web", "sleep", "60")
    container = engine.containers.all[NS, "web"]
    config = spec("web", ["sleep", "60"])
    config["process"]["terminal"] = True
    config["mounts"].append({"destination": "/dev/pts", "type": "devpts", "source": "devpts"})
    value = TypedValue(SPEC_URL, json.dumps(config).encode())
    engine.containers.all[NS, "web"] = replace(container, spec=value)
    stdio = Stdio(stdout=fifo, terminal=True)
    pid = await engine.manager.create(NS, with_stdio(request, stdio))
    await engine.manager.start(NS, "web")
    await kill_shim(engine)
    state = await engine.manager.get(NS, "web")
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    await engine.manager.resize(NS, "web", "", 80, 24)
    await exec_(engine, "e", "sh", "-c", "exit 5")
    assert (await engine.manager.wait(NS, "web", "e")).exit_status == 5


async def test_again_and_again(engine: Engine) -> None:
    pid = await engine.run("web", "sleep", "60")
    for _ in range(3):
        await kill_shim(engine)
        assert (await engine.manager.get(NS, "web")).pid == pid
    await engine.remove("web")
    await engine.clean()


async def test_delete_while_the_shim_is_away(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    await engine.manager.kill(NS, "web", 9)
    await engine.manager.wait(NS, "web")
    os.kill(shim_of(engine), signal.SIGKILL)
    assert (await engine.manager.delete(NS, "web")).exit_status == 137
    await engine.clean()


async def test_a_shim_dies_while_it_creates(
    zygote: Zygote, engines: Callable[[ShimSpawner], Engine], tmp_path: Path
) -> None:
    """What its runtime was about to make is not made behind our back, and a retry succeeds."""
    engine = engines(zygote)
    engine.runtime = slow_runtime(tmp_path, "create")
    await engine.open()
    request = engine.container("web", "sleep", "60")
    making = asyncio.ensure_future(engine.manager.create(NS, request))
    pid_file = tmp_path / "pid"
    assert await until(lambda: pid_file.exists() and pid_file.read_text().strip())
    os.kill(ancestor(int(pid_file.read_text()), "supervisord-shi"), signal.SIGKILL)
    with pytest.raises(Unknown, match="the shim ended"):
        await making
    (tmp_path / "go").touch()  # the slow one would go on now
    await engine.clean()
    assert not alive(int(pid_file.read_text()))
    assert not list(Path(cgroups.ROOT).glob(f"*/{CGROUP}/web"))
    await engine.manager.create(NS, request)


async def test_a_shim_dies_while_it_starts_an_exec(
    zygote: Zygote, engines: Callable[[ShimSpawner], Engine], tmp_path: Path
) -> None:
    engine = engines(zygote)
    engine.runtime = slow_runtime(tmp_path, "exec")
    await engine.open()
    await engine.run("web", "sleep", "60")
    starting = asyncio.ensure_future(exec_(engine, "e", "sleep", "61"))
    pid_file = tmp_path / "pid"
    assert await until(lambda: pid_file.exists() and pid_file.read_text().strip())
    await kill_shim(engine)
    with pytest.raises(Unavailable):
        await starting
    (tmp_path / "go").touch()
    assert await until(lambda: not alive(int(pid_file.read_text())))
    assert len(await engine.manager.pids(NS, "web")) == 1
    assert await exec_(engine, "e", "sleep", "61")  # its id is free


async def test_an_exec_that_was_not_noted_is_ended(engine: Engine) -> None:
    await engine.run("web", "sleep", "60")
    pid = await exec_(engine, "e", "sleep", "61")
    known = await exec_(engine, "known", "sh", "-c", "sleep 62 & wait")
    Path(engine.settings.state, "tasks", NS, "web", "exits", "e.run").unlink()
    await kill_shim(engine)
    assert await until(lambda: process.start_time(pid) is None)
    assert process.start_time(known) is not None
    assert len(await engine.manager.pids(NS, "web")) == 3


def slow_runtime(folder: Path, verb: str) -> str:
    """A runtime that waits before one of its verbs, and tells its pid meanwhile."""
    path = folder / "slow-runtime"
    path.write_text(
        f"""#!/bin/sh
case " $* " in *" {verb} "*)
    if [ ! -e {folder}/go ]; then
        echo $$ > {folder}/pid
        while [ ! -e {folder}/go ]; do sleep 0.02; done
    fi
esac
exec runc "$@"
"""
    )
    path.chmod(0o755)
    return str(path)


def ancestor(pid: int, name: str) -> int:
    """The topmost process above one that has this name."""
    found = 0
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid and Path(f"/proc/{pid}/comm").read_text().strip() == name:
            found = pid
    return found


def alive(pid: int) -> bool:
    return process.start_time(pid) is not None
