"""``kill -9`` of the daemon: containers go on, and nothing that happened meanwhile is lost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.events.v1 import events_pb2
from protos.containerd.services.namespaces.v1 import namespaces_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2
from protos.containerd.v1.types import task_pb2
from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon, alive, cgroup_folders, parent_of, remove_cgroups
from tests.conformance.fixtures import IMAGE
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire, payload

from .residue import PLUGIN


@dataclass
class Mortal:
    """A daemon of this test's own with the image unpacked in a namespace."""

    daemon: Daemon
    namespace: str
    chain_id: str
    wire: Wire
    ctr: Ctr

    def run(self, id: str, *arguments: str) -> int:
        """Starts a container; answers its pid."""
        return self.wire.run(id, arguments or ("sleep", "600"), parent=self.chain_id)

    def kill(self) -> None:
        """The daemon dies."""
        self.wire.close()
        self.daemon.kill()

    def start(self) -> None:
        """It comes back."""
        self.daemon.start()
        self.wire = Wire(self.daemon.address, self.namespace, ours=self.daemon.ours)

    def restart(self) -> None:
        """Both."""
        self.kill()
        self.start()


@pytest.fixture
def mortal(own_daemon: Daemon, image: Image, image_tar: Path) -> Iterator[Mortal]:
    namespace = f"sdfault-{uuid.uuid4().hex[:8]}"
    ctr = Ctr(own_daemon.address, namespace)
    ctr("i", "import", str(image_tar))
    wire = Wire(own_daemon.address, namespace, ours=own_daemon.ours)
    made = Mortal(own_daemon, namespace, image.chain_ids[-1], wire, ctr)
    try:
        yield made
        if own_daemon.ours:  # what a killed containerd cannot empty any more is its own affair
            sweep.namespace(made.wire)
        else:
            sweep.tasks(made.wire)
    finally:
        made.wire.close()
        remove_cgroups(f"/{namespace}")


def until_gone(pid: int) -> None:
    """Waits for the end of a process."""
    deadline = time.monotonic() + 8
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} goes on"
        time.sleep(0.02)


def test_containers_go_on_and_are_listed_with_their_pids(mortal: Mortal) -> None:
    pids = {f"c{n}": mortal.run(f"c{n}") for n in range(4)}
    mortal.kill()
    assert all(alive(pid) for pid in pids.values())
    mortal.start()
    listed = mortal.wire.tasks_by_id()
    assert {id: task.pid for id, task in listed.items()} == pids
    assert {task.status for task in listed.values()} == {task_pb2.RUNNING}
    for id, pid in pids.items():
        mortal.wire.kill(id)
        assert mortal.wire.wait(id) == 137
        assert mortal.wire.delete_task(id) == 137
        assert not alive(pid)
        mortal.wire.delete_container(id)


def test_exit_while_it_was_down_is_reported(mortal: Mortal, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    script = "while [ ! -e /gate/open ]; do sleep 0.02; done; exit 42"
    mortal.ctr(
        "run", "-d", "--mount", f"type=bind,src={gate},dst=/gate,options=rbind:ro",
        IMAGE, "c", "sh", "-c", script,
    )  # fmt: skip
    pid = mortal.wire.tasks_by_id()["c"].pid
    mortal.kill()
    (gate / "open").touch()
    until_gone(pid)
    mortal.start()
    assert mortal.wire.wait("c") == 42
    task = mortal.wire.tasks_by_id()["c"]
    assert (task.pid, task.status, task.exit_status) == (pid, task_pb2.STOPPED, 42)
    assert abs(task.exited_at.seconds - time.time()) < 20
    answer = mortal.wire.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id="c"))
    assert (answer.pid, answer.exit_status) == (pid, 42)


def test_exit_while_it_was_down_comes_as_an_event(mortal: Mortal) -> None:
    pid = mortal.run("c", "sh", "-c", "sleep 0.7; exit 7")
    mortal.kill()
    until_gone(pid)
    found: list[tuple[str, int, int]] = []

    def subscribe() -> None:
        """A client that reconnects: it subscribes as soon as there is a socket again."""
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline and not found:
            with (
                contextlib.suppress(grpc.RpcError),
                contextlib.closing(Wire(mortal.daemon.address, mortal.namespace)) as wire,
            ):
                request = events_pb2.SubscribeRequest(
                    filters=[f'topic=="/tasks/exit",namespace=={mortal.namespace}']
                )
                for envelope in wire.events.Subscribe(request, timeout=6):
                    event: Any = payload(envelope)
                    found.append((event.container_id, event.pid, event.exit_status))
                    break
            time.sleep(0.02)

    thread = threading.Thread(target=subscribe, daemon=True)
    thread.start()
    mortal.start()
    assert mortal.wire.wait("c") == 7
    thread.join(15)
    assert found == [("c", pid, 7)]


@pytest.mark.only("supervisord", reason="containerd loses what nobody was subscribed to")
def test_events_of_the_time_are_told_in_order_with_their_times(mortal: Mortal) -> None:
    pid = mortal.run("c", "sh", "-c", "sleep 1.2; exit 4")
    for number in range(3):
        mortal.wire.exec("c", f"e{number}", ["sh", "-c", f"sleep 0.{number + 5}; exit {number}"])
        mortal.wire.start("c", f"e{number}")
    mortal.kill()
    until_gone(pid)
    time.sleep(0.2)  # its shim reads the clock after it has collected it
    back = time.time_ns()
    mortal.start()
    request = events_pb2.SubscribeRequest(
        filters=[f'topic=="/tasks/exit",namespace=={mortal.namespace}']
    )
    found = []
    for envelope in mortal.wire.events.Subscribe(request, timeout=30):
        found.append((payload(envelope), envelope.timestamp.ToNanoseconds()))
        if len(found) == 4:
            break
    assert [(event.id, event.exit_status) for event, _ in found] == [
        ("e0", 0),
        ("e1", 1),
        ("e2", 2),
        ("c", 4),
    ]
    times = [when for _, when in found]
    assert times == sorted(times)
    assert times[-1] < back
    for event, when in found:
        assert 0 <= when - event.exited_at.ToNanoseconds() < 1_000_000_000


def test_exec_goes_on_too(mortal: Mortal) -> None:
    mortal.run("c")
    mortal.wire.exec("c", "e", ["sleep", "600"])
    pid = mortal.wire.start("c", "e")
    mortal.restart()
    process = mortal.wire.tasks.Get(tasks_pb2.GetRequest(container_id="c", exec_id="e")).process
    assert (process.pid, process.status) == (pid, task_pb2.RUNNING)
    mortal.wire.kill("c", 9, "e")
    assert mortal.wire.wait("c", "e") == 137
    request = tasks_pb2.DeleteProcessRequest(container_id="c", exec_id="e")
    assert mortal.wire.tasks.DeleteProcess(request).exit_status == 137
    mortal.wire.exec("c", "e2", ["sh", "-c", "exit 3"])
    mortal.wire.start("c", "e2")
    assert mortal.wire.wait("c", "e2") == 3


def test_states_are_kept(mortal: Mortal) -> None:
    mortal.run("paused")
    mortal.wire.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id="paused"))
    mortal.wire.container("created", parent=mortal.chain_id)
    mortal.wire.create_task("created")
    mortal.run("stopped", "true")
    assert mortal.wire.wait("stopped") == 0
    mortal.restart()
    listed = {id: task.status for id, task in mortal.wire.tasks_by_id().items()}
    assert listed["paused"] == task_pb2.PAUSED
    assert listed["stopped"] == task_pb2.STOPPED
    mortal.wire.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id="paused"))
    mortal.wire.kill("paused")
    assert mortal.wire.wait("paused") == 137
    assert listed.get("created") == task_pb2.CREATED
    mortal.wire.start("created")
    mortal.wire.kill("created")
    assert mortal.wire.wait("created") == 137


def test_output_to_a_file_goes_on_while_it_is_down(mortal: Mortal, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.01; done"
    mortal.ctr("run", "-d", "--log-uri", f"file://{log}", IMAGE, "c", "sh", "-c", script)
    mortal.kill()
    time.sleep(1)
    mortal.start()
    assert mortal.wire.wait("c") == 0
    assert log.read_text().splitlines() == [f"line {n}" for n in range(1, 61)]


@pytest.mark.parametrize(
    "scheme", ["file", pytest.param("cri", marks=pytest.mark.only("supervisord", reason="ours"))]
)
def test_logs_are_whole_without_it(mortal: Mortal, tmp_path: Path, scheme: str) -> None:
    """More than any pipe holds: a container that writes does not wait for the daemon."""
    log = tmp_path / "log"
    script = "for n in $(seq 40); do seq 1 5000; sleep 0.02; done; exit 4"
    mortal.ctr("run", "-d", "--log-uri", f"{scheme}://{log}", IMAGE, "c", "sh", "-c", script)
    mortal.kill()
    deadline = time.monotonic() + 30
    while not log.exists() or log.read_bytes().count(b"\n") < 200_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mortal.start()
    assert mortal.wire.wait("c") == 4
    lines = [line.rsplit(b" ", 1)[-1] for line in log.read_bytes().splitlines()]
    assert lines == [b"%d" % n for n in range(1, 5001)] * 40


def test_twice_and_again(mortal: Mortal) -> None:
    pid = mortal.run("c")
    for _ in range(3):
        mortal.restart()
        assert mortal.wire.tasks_by_id()["c"].pid == pid
    assert len([p for p in mortal.daemon.processes() if p == parent_of(pid)]) == 1


def test_ordered_stop_leaves_containers_running(mortal: Mortal) -> None:
    pid = mortal.run("c")
    mortal.wire.close()
    assert mortal.daemon.stop() == 0
    assert alive(pid)
    mortal.start()
    assert mortal.wire.tasks_by_id()["c"].pid == pid


def test_records_survive(mortal: Mortal) -> None:
    mortal.ctr("i", "label", IMAGE, "a=b")
    mortal.ctr("c", "create", IMAGE, "kept")
    mortal.ctr("leases", "create", "--id", "held")
    mortal.restart()
    assert mortal.ctr("c", "ls", "-q").out.split() == ["kept"]
    assert "a=b" in mortal.ctr("i", "ls").out
    assert mortal.ctr("leases", "ls", "-q").out.split() == ["held"]
    assert mortal.ctr("i", "check").rows()[0][3] == "complete"


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.11])
def test_death_during_create_and_start_breaks_nothing(mortal: Mortal, delay: float) -> None:
    """Whatever was half done, the same ids can be used again after the restart."""
    ids = [f"c{n}" for n in range(3)]

    def cycle(id: str) -> None:
        with (
            contextlib.suppress(grpc.RpcError),
            contextlib.closing(Wire(mortal.daemon.address, mortal.namespace)) as wire,
        ):
            while True:
                wire.run(id, ["sleep", "600"], parent=mortal.chain_id)
                wire.kill(id)
                wire.wait(id)
                wire.delete_task(id)
                wire.delete_container(id)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = [pool.submit(cycle, id) for id in ids]
        time.sleep(0.4 + delay)
        mortal.kill()
        for future in running:
            future.result(10)
    mortal.start()
    for id in ids:
        _remove(mortal.wire, id)
    assert mortal.wire.tasks_by_id() == {}
    # Containerd may leave a bundle folder that blocks the id, so there only a new one works surely.
    for id in ids if mortal.daemon.ours else [f"{id}-new" for id in ids]:
        mortal.run(id, "true")
        assert mortal.wire.wait(id) == 0
        mortal.wire.delete_task(id)
        mortal.wire.delete_container(id)
    if mortal.daemon.ours:
        _nothing_is_left(mortal, ids)


def _remove(wire: Wire, id: str) -> None:
    """Removes whatever there is of a container."""
    with sweep.absent_is_fine():
        wire.kill(id, 9, all=True)
    with sweep.absent_is_fine():
        wire.wait(id)
    with sweep.absent_is_fine():
        wire.delete_task(id)
    with sweep.absent_is_fine():
        wire.containers.Delete(containers_pb2.DeleteContainerRequest(id=id))
    sweep.snapshots(wire, keep=frozenset(n for n in sweep.names(wire, "overlayfs") if n != id))


def _nothing_is_left(mortal: Mortal, ids: list[str]) -> None:
    """No process, mount, cgroup, bundle of any of them, soon."""
    below = mortal.daemon.state / PLUGIN
    assert below.is_dir()
    deadline = time.monotonic() + 8
    while True:
        left = [f"mount {point}" for point in mortal.daemon.mounts()]
        left += [f"cgroup {p}" for id in ids for p in cgroup_folders(f"/{mortal.namespace}/{id}")]
        left += [f"file {p}" for id in ids for p in below.glob(f"*/*/{id}")]
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.only("supervisord", reason="containerd leaves a snapshot folder that blocks the next")
def test_death_during_import_breaks_nothing(mortal: Mortal, image: Image, image_tar: Path) -> None:
    for delay in (0.03, 0.08, 0.15):
        other = Ctr(mortal.daemon.address, f"{mortal.namespace}-b")
        with other.background("i", "import", str(image_tar)):
            time.sleep(delay)
            mortal.kill()
        mortal.start()
        other("i", "import", str(image_tar))
        (row,) = other("i", "check").rows()
        assert row[3] == "complete"
        assert row[-1] == "true"
        wire = mortal.wire.scoped(other.namespace)
        sweep.namespace(wire)
        wire.close()
    names = {
        n.name
        for n in mortal.wire.namespaces.List(namespaces_pb2.ListNamespacesRequest()).namespaces
    }
    assert names >= {mortal.namespace}
