"""Containers of one group share a shim: while they live, when one ends, and when the shim does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord.contracts.containers import Container
from supervisord.contracts.errors import InvalidArgument, Unknown
from supervisord.contracts.tasks import CreateTask, Status
from supervisord.contracts.typed import TypedValue
from supervisord.linux import process
from supervisord.runtime.bundle import ShimRecord
from supervisord.runtime.groups import ANNOTATIONS, Groups, group_of

from .conftest import NS, Engine, needs_root, until

RUNC_GROUP, SANDBOX_ID = ANNOTATIONS


def record(**fields: object) -> Container:
    return Container("x", spec=TypedValue("", json.dumps(fields).encode()), sandbox="record")


def test_what_makes_a_group() -> None:
    assert group_of(record(annotations={SANDBOX_ID: "pod", RUNC_GROUP: "first"})) == "first"
    assert group_of(record(annotations={SANDBOX_ID: "pod"})) == "pod"
    assert group_of(record(annotations={RUNC_GROUP: ""})) == "record"
    assert group_of(record(process={"args": [RUNC_GROUP]})) == "record"
    with pytest.raises(InvalidArgument, match="annotations"):
        group_of(record(annotations={SANDBOX_ID: 7}))
    for more in (b'"x": "\xff"}}', b'"x": ""}, "y": ' + b"[" * 100_000):
        spec = b'{"annotations": {"%b": "pod", ' % SANDBOX_ID.encode() + more
        with pytest.raises(InvalidArgument, match="spec"):
            group_of(Container("x", spec=TypedValue("", spec)))


def test_the_last_one_leaves() -> None:
    groups = Groups()
    shim, pod, one, two = ShimRecord("/s"), ("ns", "pod"), ("ns", "one"), ("ns", "two")
    shared = groups.join(pod, one, shim)
    assert groups.find(pod) is shared
    assert groups.join(pod, two, shim) is shared
    assert not groups.leave(one, shim)
    assert groups.find(pod) is shared
    assert groups.leave(two, shim)
    assert groups.find(pod) is None
    assert not groups.has("/s")
    assert groups.leave(two, shim)


def member(
    engine: Engine, id: str, *args: str, group: str = "pod", runtime: str = "io.containerd.runc.v2"
) -> CreateTask:
    """A container of a group, to be created."""
    request = engine.container(id, *args, runtime=runtime)
    container = engine.containers.all[NS, id]
    spec = {**json.loads(container.spec.value), "annotations": {RUNC_GROUP: group}}
    value = replace(container.spec, value=json.dumps(spec).encode())
    engine.containers.all[NS, id] = replace(container, spec=value)
    return request


async def run(engine: Engine, id: str, *args: str, group: str = "pod") -> int:
    """Runs it, and answers the pid of its shim."""
    await engine.manager.create(NS, member(engine, id, *args, group=group))
    await engine.manager.start(NS, id)
    return shim_of(engine, id)


def shim_of(engine: Engine, id: str) -> int:
    return engine.manager._tasks[NS, id].record.pid


async def until_gone(pid: int) -> None:
    assert await until(lambda: process.start_time(pid) is None)


@needs_root
async def test_one_shim_for_a_group(engine: Engine) -> None:
    shim = await run(engine, "one", "sleep", "60")
    assert await run(engine, "two", "sleep", "60") == shim
    assert await run(engine, "other", "sleep", "60", group="else") != shim
    assert len(list(Path(engine.settings.sockets).iterdir())) == 2
    await engine.remove("one")
    assert (await engine.manager.get(NS, "two")).status is Status.RUNNING
    assert await run(engine, "three", "sh", "-c", "exit 3") == shim
    assert (await engine.manager.wait(NS, "three")).exit_status == 3
    await engine.manager.delete(NS, "three")
    assert process.start_time(shim) is not None
    await engine.remove("two")
    await until_gone(shim)


@needs_root
async def test_made_at_the_same_time(engine: Engine) -> None:
    names = [f"m{number}" for number in range(5)]
    shims = await asyncio.gather(*(run(engine, name, "sleep", "60") for name in names))
    assert len(set(shims)) == 1
    assert shims[0]
    await asyncio.gather(*(engine.remove(name) for name in names))
    await until_gone(shims[0])


@needs_root
async def test_a_group_may_bear_the_name_of_a_container(engine: Engine) -> None:
    await engine.run("pause", "sleep", "60")
    assert await run(engine, "app", "sleep", "60", group="pause") == shim_of(engine, "pause")
    await engine.remove("pause")
    await engine.run("pause", "sleep", "60")
    assert shim_of(engine, "app") == shim_of(engine, "pause")


@needs_root
async def test_a_failed_member_touches_no_other(engine: Engine) -> None:
    shim = await run(engine, "one", "sleep", "60")
    with pytest.raises(Unknown, match="no-such-program"):
        await engine.manager.create(NS, member(engine, "two", "no-such-program"))
    assert (await engine.manager.get(NS, "one")).status is Status.RUNNING
    assert await run(engine, "two", "sleep", "60") == shim


@needs_root
async def test_a_failed_first_member_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(Unknown, match="no-such-program"):
        await engine.manager.create(NS, member(engine, "one", "no-such-program"))
    await engine.clean()
    await run(engine, "one", "sleep", "60")


@needs_root
async def test_a_restarted_daemon_knows_the_group(engine: Engine) -> None:
    shim = await run(engine, "one", "sleep", "60")
    await run(engine, "two", "sleep", "60")
    await engine.restart()
    assert await run(engine, "three", "sleep", "60") == shim
    for name in ("one", "two", "three"):
        assert (await engine.manager.get(NS, name)).status is Status.RUNNING
        assert process.start_time(shim) is not None
        await engine.remove(name)
    await until_gone(shim)


@needs_root
async def test_a_half_made_member_is_removed_alone(engine: Engine) -> None:
    shim = await run(engine, "one", "sleep", "60")
    pid = await engine.manager.create(NS, member(engine, "two", "sleep", "60"))
    bundle = engine.manager._tasks[NS, "two"].bundle
    whole = bundle.read_record()
    assert whole is not None
    bundle.write_record(replace(whole, init_pid=0, init_start=0))
    await engine.restart()
    await until_gone(pid)
    assert await until(lambda: not Path(bundle.path).exists())
    assert (await engine.manager.get(NS, "one")).status is Status.RUNNING
    assert await run(engine, "two", "sleep", "60") == shim


@needs_root
async def test_the_shim_of_a_group_dies(engine: Engine) -> None:
    shim = await run(engine, "one", "sh", "-c", "exit 3")
    assert (await engine.manager.wait(NS, "one")).exit_status == 3
    assert await run(engine, "two", "sh", "-c", "exit 4") == shim
    assert (await engine.manager.wait(NS, "two")).exit_status == 4
    os.kill(shim, signal.SIGKILL)
    assert await until(lambda: not engine.manager._tasks)
    await engine.clean()
    new = await run(engine, "one", "sleep", "60")
    assert new != shim
    assert await run(engine, "two", "sleep", "60") == new
