"""``kill -9`` of the daemon at any moment: nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable

import pytest

from supervisord.contracts.errors import AlreadyExists
from supervisord.contracts.tasks import Status
from supervisord.contracts.workers import ShimSpawner
from supervisord.runtime.zygote import Zygote

from .conftest import NS, Engine, needs_root

pytestmark = needs_root

ROUNDS = 3


async def one_round(engine: Engine, seconds: float) -> None:
    """The victim dies after ``seconds``; then its successor finds everything in order."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.unit.runtime.victim", str(engine.base), str(engine.rootfs)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert victim.stdout is not None
    assert await asyncio.wait_for(victim.stdout.readline(), 20) == b"ready\n"
    await asyncio.sleep(seconds)
    victim.kill()
    await victim.wait()
    await engine.open()
    for _ in range(500):
        tasks = await engine.manager.list(NS)
        if all(task.status is not Status.UNKNOWN for task in tasks):
            break
        await asyncio.sleep(0.02)
    for task in tasks:
        assert task.status in (Status.CREATED, Status.RUNNING, Status.STOPPED), task
        await engine.remove(task.container_id)
    for id in ("a", "b", "c"):
        try:
            await engine.run(id, "true")
        except AlreadyExists:
            raise AssertionError(f"{id} is neither listed nor free") from None
        await engine.manager.wait(NS, id)
        await engine.manager.delete(NS, id)
    await engine.clean()
    await engine.close()


async def test_at_any_moment(
    zygote: Zygote, engines: Callable[[ShimSpawner], Engine], request: pytest.FixtureRequest
) -> None:
    engine = engines(zygote)
    for id in ("a", "b", "c"):
        engine.container(id, "true")
    rng = random.Random()  # noqa: S311 - moments, not secrets
    for _ in range(ROUNDS):
        moment = rng.uniform(0.0, 0.6)
        print(f"killed after {moment:.4f} s")
        await one_round(engine, moment)
    await engine.open()
