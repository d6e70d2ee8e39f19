"""The task service: states, codes, waiters, execs, stdio over FIFOs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.v1.types import task_pb2
from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2

from .daemons import alive, cgroup_folders
from .fixtures import Shop
from .wire import Wire

Code = grpc.StatusCode


@pytest.fixture
def wire(shop: Shop) -> Wire:
    """The stubs in the shop's namespace."""
    return shop.wire


@pytest.fixture
def run(shop: Shop, unique: str) -> Callable[..., int]:
    """Starts a container from the shop's image under the test's id; answers its pid."""

    def start(*arguments: str, **more: Any) -> int:
        words = arguments or ("sleep", "600")
        return shop.wire.run(unique, words, parent=shop.chain_id, **more)

    return start


def get(wire: Wire, id: str, exec_id: str = "") -> task_pb2.Process:
    """The state of a process."""
    return wire.tasks.Get(pb.GetRequest(container_id=id, exec_id=exec_id)).process


def until_stopped(wire: Wire, id: str, exec_id: str = "") -> task_pb2.Process:
    """The state of a process once it has ended."""
    wire.wait(id, exec_id)
    return get(wire, id, exec_id)


def test_states_of_a_life(shop: Shop, wire: Wire, unique: str) -> None:
    wire.container(unique, ["sh", "-c", "exit 5"], parent=shop.chain_id)
    pid = wire.create_task(unique)
    process = get(wire, unique)
    assert (process.id, process.pid, process.status) == (unique, pid, task_pb2.CREATED)
    assert alive(pid)
    assert wire.start(unique) == pid
    process = until_stopped(wire, unique)
    assert (process.status, process.exit_status) == (task_pb2.STOPPED, 5)
    assert abs(process.exited_at.seconds - time.time()) < 10
    assert wire.tasks_by_id()[unique].status == task_pb2.STOPPED
    answer = wire.tasks.Delete(pb.DeleteTaskRequest(container_id=unique))
    assert (answer.pid, answer.exit_status) == (pid, 5)
    assert answer.exited_at == process.exited_at
    with wire.refused(Code.NOT_FOUND, unique):
        get(wire, unique)
    wire.delete_container(unique)


def test_task_is_made_again_after_its_delete(
    wire: Wire, unique: str, run: Callable[..., int]
) -> None:
    run("true")
    for _ in range(2):
        assert wire.wait(unique) == 0
        wire.delete_task(unique)
        wire.create_task(unique)
        wire.start(unique)


def test_codes_of_absent_things(wire: Wire, unique: str) -> None:
    for call in (
        lambda: get(wire, unique),
        lambda: wire.start(unique),
        lambda: wire.kill(unique),
        lambda: wire.wait(unique),
        lambda: wire.delete_task(unique),
        lambda: wire.exec(unique, "e", ["true"]),
        lambda: wire.tasks.Pause(pb.PauseTaskRequest(container_id=unique)),
        lambda: wire.tasks.ListPids(pb.ListPidsRequest(container_id=unique)),
        lambda: wire.tasks.CloseIO(pb.CloseIORequest(container_id=unique, stdin=True)),
        lambda: wire.tasks.ResizePty(pb.ResizePtyRequest(container_id=unique)),
        lambda: wire.tasks.Create(pb.CreateTaskRequest(container_id=unique)),
    ):
        with wire.refused(Code.NOT_FOUND, unique):
            call()


def test_codes_of_absent_execs(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    for call in (
        lambda: get(wire, unique, "nope"),
        lambda: wire.start(unique, "nope"),
        lambda: wire.kill(unique, exec_id="nope"),
        lambda: wire.wait(unique, "nope"),
        lambda: wire.tasks.DeleteProcess(
            pb.DeleteProcessRequest(container_id=unique, exec_id="nope")
        ),
    ):
        with wire.refused(Code.NOT_FOUND, "nope"):
            call()


def test_codes_of_the_wrong_moment(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    with wire.refused(Code.ALREADY_EXISTS, unique):
        wire.create_task(unique)
    with wire.refused(Code.FAILED_PRECONDITION, "running", reference=Code.UNKNOWN):
        wire.start(unique)
    with wire.refused(Code.FAILED_PRECONDITION, reference=Code.UNKNOWN):
        wire.delete_task(unique)
    wire.kill(unique)
    wire.wait(unique)
    with wire.refused(Code.NOT_FOUND):
        wire.kill(unique)
    with pytest.raises(grpc.RpcError):
        wire.exec(unique, "e", ["true"])
        wire.start(unique, "e")


def test_created_task_can_be_killed_and_deleted(shop: Shop, wire: Wire, unique: str) -> None:
    wire.container(unique, parent=shop.chain_id)
    pid = wire.create_task(unique)
    wire.kill(unique)
    assert wire.wait(unique) == 137
    assert wire.delete_task(unique) == 137
    assert not alive(pid)
    wire.delete_container(unique)


def test_waiters_get_the_exit_before_and_after(
    wire: Wire, unique: str, run: Callable[..., int]
) -> None:
    run()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(wire.wait, unique) for _ in range(3)]
        time.sleep(0.2)
        assert not any(future.done() for future in waiting)
        wire.kill(unique, signal.SIGTERM)
        time.sleep(0.1)
        wire.kill(unique) if get(wire, unique).status == task_pb2.RUNNING else None
        codes = {future.result(10) for future in waiting}
    assert len(codes) == 1
    assert codes <= {137, 143}
    assert wire.wait(unique) in codes


def test_wait_with_a_deadline_leaves_the_task_alone(
    wire: Wire, unique: str, run: Callable[..., int]
) -> None:
    run()
    with pytest.raises(grpc.RpcError, match=r"(?i)deadline"):
        wire.tasks.Wait(pb.WaitRequest(container_id=unique), timeout=0.2)
    assert get(wire, unique).status == task_pb2.RUNNING


@pytest.mark.parametrize("number", [1, 2, 9, 10, 15])
def test_signals(wire: Wire, unique: str, run: Callable[..., int], number: int) -> None:
    """Init of a pid namespace gets only what it handles, so a child is the one to ask."""
    run("sh", "-c", "trap 'exit 77' 1 2 10 15; while true; do sleep 0.02; done")
    time.sleep(0.15)
    wire.kill(unique, number)
    assert wire.wait(unique) == (137 if number == 9 else 77)


def test_exec_life(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    wire.exec(unique, "e", ["sh", "-c", "sleep 0.1; exit 9"])
    with wire.refused(Code.ALREADY_EXISTS, "e"):
        wire.exec(unique, "e", ["true"])
    assert get(wire, unique, "e").status == task_pb2.CREATED
    pid = wire.start(unique, "e")
    process = get(wire, unique, "e")
    assert (process.id, process.pid, process.status) == ("e", pid, task_pb2.RUNNING)
    assert wire.wait(unique, "e") == 9
    assert get(wire, unique, "e").status == task_pb2.STOPPED
    answer = wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id="e"))
    assert (answer.id, answer.pid, answer.exit_status) == ("e", pid, 9)
    with wire.refused(Code.NOT_FOUND, "e"):
        get(wire, unique, "e")
    wire.exec(unique, "e", ["true"])
    wire.start(unique, "e")
    assert wire.wait(unique, "e") == 0
    assert get(wire, unique).status == task_pb2.RUNNING


def test_exec_that_never_started_can_be_deleted(
    wire: Wire, unique: str, run: Callable[..., int]
) -> None:
    run()
    wire.exec(unique, "e", ["true"])
    wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id="e"))
    with wire.refused(Code.NOT_FOUND, "e"):
        wire.start(unique, "e")


def test_running_exec_is_not_deleted(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    wire.exec(unique, "e", ["sleep", "600"])
    wire.start(unique, "e")
    with wire.refused(Code.FAILED_PRECONDITION, reference=Code.UNKNOWN):
        wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id="e"))
    wire.kill(unique, 9, "e")
    assert wire.wait(unique, "e") == 137


def test_exec_of_a_missing_command(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    wire.exec(unique, "e", ["no-such-command"])
    with pytest.raises(grpc.RpcError) as caught:
        wire.start(unique, "e")
    assert "no-such-command" in (caught.value.details() or "")
    wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id="e"))
    wire.exec(unique, "e", ["true"])
    wire.start(unique, "e")
    assert wire.wait(unique, "e") == 0


def test_execs_end_with_init(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    wire.exec(unique, "e", ["sleep", "600"])
    pid = wire.start(unique, "e")
    wire.kill(unique)
    assert wire.wait(unique) == 137
    assert wire.wait(unique, "e") == 137
    assert not alive(pid)


def test_many_execs_at_once(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()

    def one(number: int) -> int:
        wire.exec(unique, f"e{number}", ["sh", "-c", f"exit {number}"])
        wire.start(unique, f"e{number}")
        code = wire.wait(unique, f"e{number}")
        wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id=f"e{number}"))
        return code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(16))) == list(range(16))


def test_pause_resume_and_pids(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    pid = run()
    wire.tasks.Pause(pb.PauseTaskRequest(container_id=unique))
    assert get(wire, unique).status == task_pb2.PAUSED
    with pytest.raises(grpc.RpcError):
        wire.exec(unique, "e", ["true"])
        wire.start(unique, "e")
    wire.tasks.Resume(pb.ResumeTaskRequest(container_id=unique))
    assert get(wire, unique).status == task_pb2.RUNNING
    processes = wire.tasks.ListPids(pb.ListPidsRequest(container_id=unique)).processes
    assert [process.pid for process in processes] == [pid]


def test_paused_task_can_be_killed(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run()
    wire.tasks.Pause(pb.PauseTaskRequest(container_id=unique))
    wire.kill(unique)
    with contextlib.suppress(grpc.RpcError):  # some runtimes thaw it for the signal
        wire.tasks.Resume(pb.ResumeTaskRequest(container_id=unique))
    assert wire.wait(unique) == 137


def test_update_changes_the_limit(
    shop: Shop, wire: Wire, unique: str, run: Callable[..., int]
) -> None:
    run()
    limit = 80 << 20
    resources = AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps({"memory": {"limit": limit}}).encode(),
    )
    wire.tasks.Update(pb.UpdateTaskRequest(container_id=unique, resources=resources))
    values = [
        (folder / name).read_text().strip()
        for folder in cgroup_folders(f"/{shop.namespace}/{unique}")
        for name in ("memory.limit_in_bytes", "memory.max")
        if (folder / name).exists()
    ]
    assert values == [str(limit)]


def test_metrics(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run("sh", "-c", "x=0; while [ $x -lt 20000 ]; do x=$((x+1)); done; exec sleep 600")
    time.sleep(0.3)
    (metric,) = wire.tasks.Metrics(pb.MetricsRequest(filters=[f"id=={unique}"])).metrics
    assert metric.id == unique
    assert abs(metric.timestamp.seconds - time.time()) < 10
    kinds: dict[str, Any] = {
        "io.containerd.cgroups.v1.Metrics": v1.Metrics,
        "io.containerd.cgroups.v2.Metrics": v2.Metrics,
    }
    data = kinds[metric.data.type_url].FromString(metric.data.value)
    assert data.pids.current == 1
    if metric.data.type_url.endswith("v1.Metrics"):
        assert data.cpu.usage.total > 1_000_000
        assert data.memory.usage.usage > 0
    else:
        assert data.cpu.usage_usec > 1_000
        assert data.memory.usage > 0
    assert not wire.tasks.Metrics(pb.MetricsRequest(filters=["id==absent"])).metrics


# --- stdio ----------------------------------------------------------------------------------------


class Fifos:
    """The client's side of a process' stdio."""

    def __init__(self, folder: Path, terminal: bool = False) -> None:
        names = ("stdin", "stdout") if terminal else ("stdin", "stdout", "stderr")
        self.paths = {name: str(folder / name) for name in names}
        for path in self.paths.values():
            os.mkfifo(path)
        self.received: dict[str, bytes] = {}
        self._threads = []
        for name in names[1:]:
            thread = threading.Thread(target=self._drain, args=(name,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _drain(self, name: str) -> None:
        with open(self.paths[name], "rb", buffering=0) as file:
            while data := file.read(65536):
                self.received[name] = self.received.get(name, b"") + data

    def join(self) -> dict[str, bytes]:
        """Everything that came, once both ends are closed."""
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "an output FIFO was not closed"
        return self.received


@pytest.fixture
def fifos(tmp_path: Path) -> Iterator[Callable[..., Fifos]]:
    """Makes FIFOs, and lets go of those that nobody ever opened."""
    made: list[Fifos] = []

    def make(terminal: bool = False) -> Fifos:
        made.append(Fifos(tmp_path, terminal))
        return made[-1]

    yield make
    for each in made:
        for path in each.paths.values():
            with contextlib.suppress(OSError):  # ENXIO: nobody waits
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_fifos_carry_all_and_end(
    shop: Shop, wire: Wire, unique: str, fifos: Callable[..., Fifos]
) -> None:
    made = fifos()
    script = "cat; echo end >&2"
    wire.container(unique, ["sh", "-c", script], parent=shop.chain_id)
    wire.create_task(unique, **made.paths)
    wire.start(unique)
    data = os.urandom(700_000)
    with open(made.paths["stdin"], "wb") as file:
        file.write(data)
    wire.tasks.CloseIO(pb.CloseIORequest(container_id=unique, stdin=True))
    assert wire.wait(unique) == 0
    assert wire.delete_task(unique) == 0
    assert made.join() == {"stdout": data, "stderr": b"end\n"}
    wire.delete_container(unique)


def test_delete_returns_when_the_output_is_out(
    shop: Shop, wire: Wire, unique: str, fifos: Callable[..., Fifos]
) -> None:
    """What a process wrote before its end is in the FIFO before Delete answers."""
    made = fifos()
    wire.container(unique, ["sh", "-c", "seq 1 100000"], parent=shop.chain_id)
    wire.create_task(unique, **made.paths)
    wire.start(unique)
    wire.wait(unique)
    wire.delete_task(unique)
    lines = made.join()["stdout"].split()
    assert lines == [str(n).encode() for n in range(1, 100_001)]
    wire.delete_container(unique)


def test_exec_over_fifos(
    shop: Shop, wire: Wire, unique: str, run: Callable[..., int], fifos: Callable[..., Fifos]
) -> None:
    run()
    made = fifos()
    wire.exec(unique, "e", ["sh", "-c", "read x; echo got $x; exit 3"], **made.paths)
    wire.start(unique, "e")
    with open(made.paths["stdin"], "wb") as file:
        file.write(b"word\n")
    assert wire.wait(unique, "e") == 3
    wire.tasks.DeleteProcess(pb.DeleteProcessRequest(container_id=unique, exec_id="e"))
    assert made.join() == {"stdout": b"got word\n"}


def test_terminal_over_fifos_and_resize(
    shop: Shop, wire: Wire, unique: str, run: Callable[..., int], fifos: Callable[..., Fifos]
) -> None:
    def on_terminal(document: dict[str, Any]) -> None:
        document["process"]["terminal"] = True
        options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        document["mounts"].append(
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}
        )

    made = fifos(terminal=True)
    script = "until stty size 2>/dev/null | grep -q 99; do sleep 0.02; done; stty size"
    wire.container(unique, ["sh", "-c", script], parent=shop.chain_id, change=on_terminal)
    wire.create_task(unique, terminal=True, **made.paths)
    wire.start(unique)
    wire.tasks.ResizePty(pb.ResizePtyRequest(container_id=unique, width=99, height=33))
    assert wire.wait(unique) == 0
    wire.delete_task(unique)
    assert made.join() == {"stdout": b"33 99\r\n"}
    wire.delete_container(unique)


def test_no_stdio_at_all(wire: Wire, unique: str, run: Callable[..., int]) -> None:
    run("sh", "-c", "echo nobody reads this; read x; exit 4")
    assert wire.wait(unique) == 4


# --- creation that fails --------------------------------------------------------------------------


LEAVES_ITS_BUNDLE = pytest.mark.only("supervisord", reason="containerd leaves the bundle behind")


@pytest.mark.parametrize(
    "what", ["command", pytest.param("spec", marks=LEAVES_ITS_BUNDLE), "runtime", "mount"]
)
def test_failed_create_leaves_nothing_and_can_be_retried(
    shop: Shop, wire: Wire, unique: str, what: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        if what == "command":
            document["process"]["args"] = ["no-such-command"]
        if what == "mount":
            document["mounts"].append(
                {"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}
            )

    wire.container(unique, parent=shop.chain_id, change=change)
    if what in ("spec", "runtime"):
        record = wire.containers.Get(containers_pb2.GetContainerRequest(id=unique)).container
        wire.containers.Delete(containers_pb2.DeleteContainerRequest(id=unique))
        good = containers_pb2.Container()
        good.CopyFrom(record)
        if what == "spec":
            record.spec.value = b"this is not JSON"
        else:
            record.runtime.name = "io.containerd.nosuch.v7"
        wire.containers.Create(containers_pb2.CreateContainerRequest(container=record))
    with pytest.raises(grpc.RpcError):
        wire.create_task(unique)
        wire.start(unique)
    if unique in wire.tasks_by_id():
        wire.delete_task(unique)
    assert unique not in wire.tasks_by_id()
    with open("/proc/self/mountinfo") as file:
        assert unique not in file.read()
    assert cgroup_folders(f"/{shop.namespace}/{unique}") == []
    wire.delete_container(unique)
    wire.run(unique, ["true"], parent=shop.chain_id)
    assert wire.wait(unique) == 0
    wire.delete_task(unique)
    wire.delete_container(unique)


def test_cancelled_create_leaves_nothing_half_made(shop: Shop, wire: Wire, unique: str) -> None:
    wire.container(unique, ["true"], parent=shop.chain_id)
    request = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=unique)
    mounts = wire.snapshots.Mounts(request).mounts
    for delay in (0.001, 0.01, 0.03, 0.06):
        call = wire.tasks.Create.future(pb.CreateTaskRequest(container_id=unique, rootfs=mounts))
        time.sleep(delay)
        call.cancel()
        deadline = time.monotonic() + 10
        while True:  # whatever became of it, the id is usable again soon
            try:
                wire.create_task(unique)
            except grpc.RpcError as error:
                assert time.monotonic() < deadline, error
                if unique in wire.tasks_by_id():
                    wire.kill(unique)
                    wire.wait(unique)
                    wire.delete_task(unique)
                time.sleep(0.05)
                continue
            break
        wire.start(unique)
        assert wire.wait(unique) == 0
        wire.delete_task(unique)
    wire.delete_container(unique)
