"""``kill -9`` of a shim: with containerd its container ends, with ours it goes on with a new shim;
everything else goes on, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import grpc
import pytest

from protos.containerd.services.tasks.v1 import tasks_pb2
from protos.containerd.v1.types import task_pb2
from tests.conformance import sweep
from tests.conformance.daemons import alive, cgroup_folders, parent_of
from tests.conformance.fixtures import Shop

ENDS = pytest.mark.only("containerd", reason="ours gives the container another shim")


@pytest.mark.only("supervisord", reason="containerd ends the container")
def test_container_outlives_its_shim(shop: Shop, unique: str) -> None:
    pid = shop.wire.run(unique, parent=shop.chain_id)
    other = shop.wire.run(f"{unique}-2", parent=shop.chain_id)
    shop.wire.exec(unique, "e", ["sleep", "600"])
    exec_pid = shop.wire.start(unique, "e")
    shim = parent_of(pid)
    assert shim not in (0, 1)
    with shop.wire.record() as recorder:
        os.kill(shim, signal.SIGKILL)
        shop.wire.kill(unique, 9, "e")  # waits for the new shim
        assert shop.wire.wait(unique, "e") == 137
        (event,) = recorder.expect("/tasks/exit")
        assert (event.container_id, event.id, event.pid) == (unique, "e", exec_pid)
        assert {shop.wire.tasks_by_id()[id].pid for id in (unique, f"{unique}-2")} == {pid, other}
        assert shop.wire.tasks_by_id()[unique].status == task_pb2.RUNNING
        shop.wire.kill(unique)
        assert shop.wire.wait(unique) == 137
        assert shop.wire.delete_task(unique) == 137
    assert not alive(pid)
    assert cgroup_folders(f"/{shop.namespace}/{unique}") == []
    with open("/proc/self/mountinfo") as file:
        assert f"/{unique}/" not in file.read()
    shop.wire.create_task(unique)
    shop.wire.start(unique)
    assert shop.wire.tasks_by_id()[unique].status == task_pb2.RUNNING


@ENDS
def test_dead_shim_is_an_exit(shop: Shop, unique: str) -> None:
    pid = shop.wire.run(unique, parent=shop.chain_id)
    other = shop.wire.run(f"{unique}-2", parent=shop.chain_id)
    shim = parent_of(pid)
    assert shim not in (0, 1)
    with shop.wire.record() as recorder:
        os.kill(shim, signal.SIGKILL)
        (event,) = recorder.expect("/tasks/exit")
        assert (event.container_id, event.pid, event.exit_status) == (unique, pid, 137)
        recorder.settle()
    deadline = time.monotonic() + 8
    while alive(pid):
        assert time.monotonic() < deadline, "the container outlived its shim"
        time.sleep(0.05)
    assert alive(other)
    assert shop.wire.tasks_by_id()[f"{unique}-2"].status == task_pb2.RUNNING
    with sweep.absent_is_fine():
        shop.wire.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=unique))
    assert unique not in shop.wire.tasks_by_id()
    shop.wire.create_task(unique)
    shop.wire.start(unique)
    assert shop.wire.tasks_by_id()[unique].status == task_pb2.RUNNING


@ENDS
def test_dead_shim_leaves_nothing(shop: Shop, unique: str) -> None:
    pid = shop.wire.run(unique, parent=shop.chain_id)
    os.kill(parent_of(pid), signal.SIGKILL)
    deadline = time.monotonic() + 8
    while unique in shop.wire.tasks_by_id() or alive(pid):
        with contextlib.suppress(grpc.RpcError):
            shop.wire.wait(unique)
        with contextlib.suppress(grpc.RpcError):
            shop.wire.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=unique))
        assert time.monotonic() < deadline, "the task stays"
        time.sleep(0.05)
    assert cgroup_folders(f"/{shop.namespace}/{unique}") == []
    with open("/proc/self/mountinfo") as file:
        assert f"/{unique}/" not in file.read()
    shop.wire.delete_container(unique)


@ENDS
def test_waiter_learns_of_a_dead_shim(shop: Shop, unique: str) -> None:
    pid = shop.wire.run(unique, parent=shop.chain_id)

    def wait() -> None:
        with contextlib.suppress(grpc.RpcError):  # "ttrpc: closed" is all that containerd says
            shop.wire.wait(unique)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.2)
    os.kill(parent_of(pid), signal.SIGKILL)
    thread.join(8)
    assert not thread.is_alive()


@pytest.mark.only("supervisord", reason="containerd takes two seconds for each, or never answers")
@pytest.mark.parametrize("count", [5])
def test_list_is_answered_while_a_shim_is_stuck(shop: Shop, unique: str, count: int) -> None:
    """A shim that does not answer (stopped) delays nobody's list for long."""
    pids = [shop.wire.run(f"{unique}-{n}", parent=shop.chain_id) for n in range(count)]
    stuck = parent_of(pids[0])
    os.kill(stuck, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        request = tasks_pb2.ListTasksRequest()
        listed = {task.id: task for task in shop.wire.tasks.List(request).tasks}
        assert time.monotonic() - begin < 4
        for number in range(1, count):
            assert listed[f"{unique}-{number}"].status == task_pb2.RUNNING
        begin = time.monotonic()
        shop.wire.run(f"{unique}-new", ["true"], parent=shop.chain_id)
        assert shop.wire.wait(f"{unique}-new") == 0
        assert time.monotonic() - begin < 4
    finally:
        os.kill(stuck, signal.SIGCONT)
