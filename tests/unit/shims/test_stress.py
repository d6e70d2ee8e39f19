"""Races with real processes: many exits at once, signals that come too late, several waiters."""

from __future__ import annotations

import asyncio

import pytest

from supervisord.contracts.errors import Error, FailedPrecondition, NotFound

from .conftest import Shim, ShimRoom, needs_root

pytestmark = needs_root


async def exec_once(shim: Shim, exec_id: str, *args: str) -> int:
    await shim.exec(exec_id, *args)
    await shim.start(exec_id)
    status = await shim.wait(exec_id)
    assert (await shim.delete(exec_id)).exit_status == status
    return status


async def test_execs_that_all_end_at_once(shims: ShimRoom) -> None:
    shim = await shims.shim("m", "sleep", "100")
    await shim.create()
    await shim.start()
    await exec_once(shim, "first", "true")
    before = shim.fds()
    ids = [f"e{number}" for number in range(24)]
    gate = asyncio.Semaphore(6)

    async def one(exec_id: str) -> int:
        async with gate:
            return await exec_once(shim, exec_id, "sh", "-c", f"exit {len(exec_id)}")

    assert await asyncio.gather(*map(one, ids)) == [len(id) for id in ids]
    await shims.events.until("/tasks/exit", 1 + len(ids))
    pids = {event.exec_id: event.pid for event in shims.events.of("/tasks/exec-started")}
    ends = {event.id: event for event in shims.events.of("/tasks/exit")}
    for exec_id in ids:
        assert ends[exec_id].pid == pids[exec_id]
        assert ends[exec_id].exit_status == len(exec_id)
    assert shim.fds() == before
    assert not list((shim.bundle / "exits").glob("e*"))


async def test_a_signal_that_races_the_exit(shims: ShimRoom) -> None:
    shim = await shims.shim("r", "sleep", "100")
    await shim.create()
    await shim.start()
    for number in range(12):
        exec_id = f"e{number}"
        await shim.exec(exec_id, "sleep", f"{0.004 * (number % 6)}")
        await shim.start(exec_id)
        waits = [asyncio.ensure_future(shim.wait(exec_id)) for _ in range(2)]
        await asyncio.sleep(0.002 * (number % 5))
        try:
            await shim.kill(9, exec_id)
        except NotFound as error:
            assert error.message == "process already finished"
        first, second = await asyncio.gather(*waits)
        assert first == second
        assert first in (0, 137)
        assert await shim.wait(exec_id) == first, "whoever asks later is told the same"
        with pytest.raises(NotFound):
            await shim.kill(9, exec_id)
        await shim.delete(exec_id)


async def test_a_delete_while_it_is_killed(shims: ShimRoom) -> None:
    for number in range(4):
        shim = await shims.shim(f"d{number}", "sleep", "100")
        await shim.create()
        await shim.start()
        await shim.exec("left", "sleep", "100")
        await shim.start("left")
        refused = 0

        async def delete(shim: Shim = shim) -> int:
            nonlocal refused
            while True:
                try:
                    return (await shim.delete()).exit_status
                except FailedPrecondition as error:
                    assert "cannot delete a running process" in error.message
                    refused += 1
                    await asyncio.sleep(0)

        deleting = asyncio.ensure_future(delete())
        while not refused:  # noqa: ASYNC110 - what is waited for is another task
            await asyncio.sleep(0)
        status, _ = await asyncio.gather(deleting, shim.kill(9))
        assert status == 137
        for again in (shim.delete(), shim.kill(9), shim.state()):
            with pytest.raises(Error):
                await again
        topics = [topic for topic in shims.events.topics if topic != "/tasks/oom"]
        assert topics[-3:] == ["/tasks/exit", "/tasks/exit", "/tasks/delete"]
        assert shims.events.of("/tasks/exit")[-1].id == shim.id, "init is told of last"


async def test_init_ends_while_execs_begin(shims: ShimRoom) -> None:
    """Each exec either ran, and its end is told before that of init, or was refused."""
    shim = await shims.shim("b", "sleep", "100")
    await shim.create()
    await shim.start()
    ids = [f"e{number}" for number in range(6)]
    for exec_id in ids:
        await shim.exec(exec_id, "sleep", "100")
    waits = {id: asyncio.ensure_future(shim.wait(id)) for id in ids}
    starts = [asyncio.ensure_future(shim.start(id)) for id in ids]
    await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
    await shim.kill(9)
    began = await asyncio.gather(*starts, return_exceptions=True)
    assert await shim.wait() == 137
    assert all(isinstance(answer, int | Error) for answer in began)
    await shims.events.until("/tasks/exit", 1)
    await shim.delete()
    done, pending = await asyncio.wait(waits.values(), timeout=10)
    assert not pending
    assert len(done) == len(ids)
    assert shims.events.of("/tasks/exit")[-1].id == "b"


async def test_a_container_that_was_never_started_goes_with_its_execs(shims: ShimRoom) -> None:
    shim = await shims.shim("n", "sleep", "100")
    await shim.create()
    await shim.exec("begun", "sleep", "100")
    await shim.start("begun")
    await shim.exec("idle", "true")
    waits = [asyncio.ensure_future(shim.wait(id)) for id in ("", "begun", "idle")]
    await asyncio.sleep(0.05)
    await shim.delete()
    async with asyncio.timeout(10):
        init, begun, idle = await asyncio.gather(*waits)
    assert (init, begun, idle) == (137, 137, 255)
