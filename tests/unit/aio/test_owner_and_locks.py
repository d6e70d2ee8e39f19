"""Owned tasks and keyed locks."""

from __future__ import annotations

import asyncio

import pytest

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import NotFound, Unavailable


async def test_an_owner_forgets_finished_tasks_and_refuses_newcomers() -> None:
    owner = TaskOwner("test")
    task = owner.spawn(asyncio.sleep(0, "done"), "sleep")
    assert len(owner) == 1
    assert await task == "done"
    await asyncio.sleep(0)
    assert len(owner) == 0
    forever = owner.spawn(asyncio.sleep(60), "forever")
    brief = owner.spawn(asyncio.sleep(0.01, "kept"), "brief")
    await owner.close(grace=0.05)
    assert forever.cancelled()
    assert brief.result() == "kept"
    with pytest.raises(RuntimeError, match="closed"):
        owner.spawn(asyncio.sleep(0), "late")
    with pytest.raises(Unavailable, match="closed"):
        await owner.shielded(asyncio.sleep(0), "late")


async def test_shielded_work_goes_on_when_its_caller_is_cancelled() -> None:
    owner = TaskOwner("test")
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    caller = asyncio.ensure_future(owner.shielded(work(), "work"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(1):
        await done.wait()
    await owner.close()


async def test_a_failing_task_harms_nobody() -> None:
    owner = TaskOwner("test")

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await owner.shielded(fails(), "fails")
    owner.spawn(fails(), "unwatched")
    await asyncio.sleep(0.01)
    await owner.close()


async def test_a_key_is_held_by_one_and_others_are_free() -> None:
    locks = KeyedLock()
    order: list[str] = []

    async def user(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await asyncio.sleep(0.01)
            order.append(f"{name} out")

    await asyncio.gather(user("a", "1"), user("a", "2"), user("b", "3"))
    assert order.index("1 out") < order.index("2 in")
    assert order.index("3 in") < order.index("1 out")
    assert not locks.held("a")
    assert locks._locks == {}


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    locks = KeyedLock()

    async def wait() -> None:
        async with locks.hold("k"):
            pytest.fail("the key was held by somebody else")

    async with locks.hold("k"):
        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        assert locks.held("k")
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert locks._locks == {}
    with pytest.raises(ValueError, match="inside"):
        async with locks.hold("k"):
            raise ValueError("inside")
    assert not locks.held("k")


async def test_a_refusal_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    owner = TaskOwner("told")

    async def fail(error: Exception) -> None:
        raise error

    with caplog.at_level("DEBUG", "supervisord.aio.owner"):
        for error in (NotFound("it is not here"), KeyError("a defect")):
            with pytest.raises(type(error)):
                await owner.shielded(fail(error), "work")
            await asyncio.sleep(0)
    refusal, defect = caplog.records
    assert (refusal.levelname, defect.levelname) == ("DEBUG", "ERROR")
    assert refusal.exc_info is None
    assert vars(refusal)["error"].message == "it is not here"
    assert defect.exc_info is not None
    await owner.close()
