"""Many running containers, and a daemon that comes back to them."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from protos.containerd.v1.types import task_pb2
from tests.conformance.daemons import alive, parent_of

from .test_daemon_death import Mortal, mortal

__all__ = ["mortal"]

COUNT = 200
SECONDS = 30.0
"""Two are the goal on a machine that has nothing else to do. Here it only must not be serial: the
shim that hangs alone would take longer than that to be given up again and again."""


@pytest.mark.only("supervisord", reason="containerd takes its time, one after the other")
def test_two_hundred_are_served_again(mortal: Mortal) -> None:
    """List tells the state of all, State and Kill reach each, while one shim hangs."""
    ids = [f"c{number}" for number in range(COUNT)]
    with ThreadPoolExecutor(8) as pool:
        pids = dict(zip(ids, pool.map(mortal.run, ids), strict=True))
        stuck = parent_of(pids[ids[0]])
        mortal.kill()
        os.kill(stuck, signal.SIGSTOP)
        try:
            began = time.monotonic()
            mortal.start()
            ready = time.monotonic() - began
            listed = mortal.wire.tasks_by_id()
            seen = time.monotonic() - began
            assert {id: task.pid for id, task in listed.items()} == pids
            running = [id for id, task in listed.items() if task.status == task_pb2.RUNNING]
            assert len(running) == COUNT - 1
            list(pool.map(mortal.wire.kill, ids[1:]))
            assert set(pool.map(mortal.wire.wait, ids[1:])) == {137}
            over = time.monotonic() - began
            assert over < SECONDS
            print(f"answers after {ready:.2f} s, lists {seen:.2f}, all are killed {over:.2f}")
        finally:
            os.kill(stuck, signal.SIGCONT)
        mortal.wire.kill(ids[0])
        assert mortal.wire.wait(ids[0]) == 137
        assert not any(alive(pid) for pid in pids.values())

        def remove(id: str) -> None:
            mortal.wire.delete_task(id)
            mortal.wire.delete_container(id)

        list(pool.map(remove, ids))
