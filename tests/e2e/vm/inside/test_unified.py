"""A host with control groups of version 2 alone: lives, limits, statistics, checkpoints.

Runs inside the machine of ``tests/e2e/vm``, where everything takes twenty times as long and nothing
else is there: one daemon, containers from a snapshot with busybox alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.services.namespaces.v1 import namespaces_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.types import types_pb2
from protos.containerd.v1.types import task_pb2
from protos.io.containerd.cgroups.v2 import metrics_pb2
from tests.conformance.daemons import Daemon, Supervisord, alive, parent_of
from tests.conformance.wire import Wire

NAMESPACE = "unified"
GROUPS = Path("/sys/fs/cgroup", NAMESPACE)
PATIENCE = 60.0
RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /count; sleep 0.1; done"


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    started = Supervisord()
    started.start(timeout=120)
    yield started
    print(started.log_tail(20000))
    started.close()


@pytest.fixture(scope="session")
def wire(daemon: Daemon) -> Iterator[Wire]:
    stubs = Wire(daemon.address, NAMESPACE, ours=True, timeout=PATIENCE)
    request = namespaces_pb2.Namespace(name=NAMESPACE)
    stubs.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=request))
    prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="draft")
    (mount,) = stubs.snapshots.Prepare(prepare).mounts
    root = Path(mount.source)
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "sleep", "true", "cat", "yes", "tr", "head", "dd", "mkdir"):
        (root / "bin" / applet).symlink_to("busybox")
    commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", name="base", key="draft")
    stubs.snapshots.Commit(commit)
    yield stubs
    stubs.close()


class Box:
    """One container, made of the base snapshot, by a runtime that is named."""

    def __init__(self, wire: Wire, runtime: str) -> None:
        self.wire = wire
        self.id = f"b{uuid.uuid4().hex[:8]}"
        self.runtime = runtime
        self.group = GROUPS / self.id

    def make(self, script: str, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.wire.container(self.id, ["sh", "-c", script], parent="base", change=change)

    def create(self, **more: Any) -> int:
        options = options_pb2.Options(binary_name=self.runtime)
        options.MergeFrom(more.pop("options", options_pb2.Options()))
        if options.ByteSize():
            more["options"] = packed(options)
        return self.wire.create_task(self.id, **more)

    def run(self, script: str, change: Callable[[dict[str, Any]], None] | None = None) -> int:
        self.make(script, change)
        self.create()
        return self.wire.start(self.id)

    @property
    def process(self) -> task_pb2.Process:
        return self.wire.tasks.Get(pb.GetRequest(container_id=self.id)).process

    def value(self, file: str) -> str:
        return (self.group / file).read_text().strip()

    def exec(self, script: str) -> int:
        """Runs a script to its end."""
        id = f"e{uuid.uuid4().hex[:6]}"
        self.wire.exec(self.id, id, ["sh", "-c", script])
        self.wire.start(self.id, id)
        status = self.wire.wait(self.id, id)
        request = pb.DeleteProcessRequest(container_id=self.id, exec_id=id)
        self.wire.tasks.DeleteProcess(request)
        return status

    def update(self, **resources: Any) -> None:
        value = AnyMessage(type_url="LinuxResources", value=json.dumps(resources).encode())
        self.wire.tasks.Update(pb.UpdateTaskRequest(container_id=self.id, resources=value))

    def metrics(self) -> metrics_pb2.Metrics:
        request = pb.MetricsRequest(filters=[f"id=={self.id}"])
        (metric,) = self.wire.tasks.Metrics(request).metrics
        assert metric.data.type_url == "io.containerd.cgroups.v2.Metrics"
        return metrics_pb2.Metrics.FromString(metric.data.value)

    def end(self) -> int:
        """Kills and deletes it, and makes sure that nothing is left; answers its exit status."""
        if self.process.status != task_pb2.STOPPED:
            self.wire.kill(self.id)
        status = self.wire.wait(self.id)
        assert self.wire.delete_task(self.id) == status
        self.gone()
        self.wire.delete_container(self.id)
        return status

    def gone(self) -> None:
        assert not self.group.exists()
        assert self.id not in Path("/proc/self/mountinfo").read_text()
        kept = [found for found in Path("/run").rglob(self.id) if "cgroup" not in str(found)]
        assert not kept


def packed(message: Message) -> AnyMessage:
    name = message.DESCRIPTOR.full_name
    return AnyMessage(type_url=name, value=message.SerializeToString())


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.1)


@pytest.fixture
def box(wire: Wire, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A container by the runtime that the test asks for ("": the daemon's choice)."""
    made = Box(wire, getattr(request, "param", ""))
    yield made
    if made.id in wire.tasks_by_id():
        if made.process.status != task_pb2.STOPPED:
            wire.kill(made.id)
        wire.wait(made.id)
        wire.delete_task(made.id)


boxes = pytest.mark.parametrize("box", ["crun", "runc"], indirect=True)
runc = pytest.mark.parametrize("box", ["runc"], indirect=True)
crun = pytest.mark.parametrize("box", ["crun"], indirect=True)


def test_the_host_is_unified_and_crun_the_default(box: Box, daemon: Daemon) -> None:
    assert "memory" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    box.run("exit 7")
    assert box.wire.wait(box.id) == 7
    (found,) = daemon.state.rglob(f"{box.id}/runtime.json")
    assert json.loads(found.read_text())["binary"].endswith("/crun")
    assert box.end() == 7


@boxes
def test_a_life(box: Box) -> None:
    box.make("sleep 600")
    pid = box.create()
    assert box.process.status == task_pb2.CREATED
    assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::/{NAMESPACE}/{box.id}\n"
    assert box.wire.start(box.id) == pid
    assert box.exec("exit 3") == 3
    box.wire.exec(box.id, "long", ["sleep", "600"])
    other = box.wire.start(box.id, "long")
    assert Path(f"/proc/{other}/cgroup").read_text() == f"0::/{NAMESPACE}/{box.id}\n"
    found = box.wire.tasks.ListPids(pb.ListPidsRequest(container_id=box.id)).processes
    details = {p.pid: options_pb2.ProcessDetails.FromString(p.info.value).exec_id for p in found}
    assert details == {pid: "", other: "long"}
    assert box.end() == 137
    assert not alive(pid)
    assert not alive(other)


@boxes
def test_start_and_delete_execute_no_runtime(box: Box, tmp_path: Path) -> None:
    execs = box.runtime == "runc"  # those of runc need none either
    program = tmp_path / box.runtime
    shutil.copy2(shutil.which(box.runtime) or "", program)
    box.runtime = str(program)
    box.make("sleep 600")
    pid = box.create()
    program.unlink()
    assert box.wire.start(box.id) == pid
    if execs:
        assert box.exec(f"grep -q {NAMESPACE} /proc/self/cgroup") == 0
        assert box.exec("exit 3") == 3
    assert box.end() == 137


@boxes
def test_statistics_are_those_of_the_files(box: Box) -> None:
    def limited(spec: dict[str, Any]) -> None:
        spec["linux"]["resources"] |= {"memory": {"limit": 64 << 20}, "pids": {"limit": 33}}

    box.run("dd if=/dev/zero of=/file bs=65536 count=64 conv=fsync; exec sleep 600", limited)
    until(lambda: box.metrics().io.usage, "io of a disk")
    box.wire.tasks.Pause(pb.PauseTaskRequest(container_id=box.id))
    metrics = box.metrics()
    assert metrics.pids.current == int(box.value("pids.current")) == 1
    assert metrics.pids.limit == 33
    assert metrics.memory.usage_limit == 64 << 20
    assert metrics.memory.usage == int(box.value("memory.current"))
    tables = {"memory.stat": metrics.memory, "cpu.stat": metrics.cpu}
    for file, message in tables.items():
        values = dict(line.split() for line in box.value(file).splitlines())
        for name in {"anon", "file", "slab", "pgfault", "usage_usec", "user_usec"} & set(values):
            assert getattr(message, name) == int(values[name]), name
    events = dict(line.split() for line in box.value("memory.events").splitlines())
    for name, value in events.items():
        assert getattr(metrics.memory_events, name, 0) == int(value)
    (line,) = box.value("io.stat").splitlines()
    device, *pairs = line.split()
    numbers = dict(pair.split("=") for pair in pairs)
    (usage,) = metrics.io.usage
    assert f"{usage.major}:{usage.minor}" == device
    assert (usage.wbytes, usage.wios) == (int(numbers["wbytes"]), int(numbers["wios"]))
    assert usage.wbytes >= 64 << 16
    box.wire.tasks.Resume(pb.ResumeTaskRequest(container_id=box.id))
    box.end()


@boxes
def test_an_out_of_memory_kill_is_told(box: Box) -> None:
    def small(spec: dict[str, Any]) -> None:
        spec["linux"]["resources"] |= {"memory": {"limit": 24 << 20, "swap": 24 << 20}}

    with box.wire.record() as events:
        box.run("x=$(yes | tr '\\n' x | head -c 60000000); echo never", small)
        box.wire.wait(box.id)
        events.expect("/tasks/oom", timeout=PATIENCE)
        events.expect("/tasks/exit", timeout=PATIENCE)
        topics = events.topics()
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")
    box.end()


@boxes
def test_limits_are_changed(box: Box) -> None:
    box.run("sleep 600")
    shares = {"shares": 2048, "quota": 50_000, "period": 100_000}
    box.update(memory={"limit": 48 << 20}, pids={"limit": 21}, cpu=shares)
    assert box.value("memory.max") == str(48 << 20)
    assert box.value("pids.max") == "21"
    assert box.value("cpu.max") == "50000 100000"
    assert int(box.value("cpu.weight")) == 79  # 1 + (shares - 2) * 9999 / 262142
    box.end()


@runc
def test_limits_of_the_unified_hierarchy_by_name(box: Box) -> None:
    box.run("sleep 600")
    box.update(unified={"memory.high": str(40 << 20), "pids.max": "9"})
    assert box.value("memory.high") == str(40 << 20)
    assert box.value("pids.max") == "9"
    box.end()


@boxes
def test_pause_and_resume(box: Box) -> None:
    box.run(COUNT)
    box.wire.tasks.Pause(pb.PauseTaskRequest(container_id=box.id))
    assert box.process.status == task_pb2.PAUSED
    assert "frozen 1" in box.value("cgroup.events")
    box.wire.tasks.Resume(pb.ResumeTaskRequest(container_id=box.id))
    assert box.process.status == task_pb2.RUNNING
    assert "frozen 0" in box.value("cgroup.events")
    box.wire.tasks.Pause(pb.PauseTaskRequest(container_id=box.id))
    box.wire.kill(box.id)
    assert box.wire.wait(box.id) == 137
    box.end()


@boxes
def test_all_are_killed_where_pids_are_shared(box: Box) -> None:
    def shared(spec: dict[str, Any]) -> None:
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]

    box.run("sleep 601 & sleep 601 & exec sleep 601", shared)
    until(lambda: box.value("pids.current") == "3", "three processes")
    found = box.wire.tasks.ListPids(pb.ListPidsRequest(container_id=box.id)).processes
    assert len(found) == 3
    box.wire.kill(box.id, 9, all=True)
    box.wire.wait(box.id)
    until(lambda: not any(alive(process.pid) for process in found), "the end of all")
    box.end()


@boxes
def test_groups_that_a_container_made_go_with_it(box: Box) -> None:
    def own(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"].append({"type": "cgroup"})
        mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
        spec["mounts"].append(mount | {"options": ["nosuid", "noexec", "nodev", "rw"]})

    box.run("mkdir -p /sys/fs/cgroup/a/b && exec sleep 600", own)
    until(lambda: (box.group / "a/b").is_dir(), "a group below")
    box.end()


@crun
def test_the_daemon_dies_and_comes_back(box: Box, daemon: Daemon) -> None:
    pid = box.run("trap 'exit 5' 15; while :; do sleep 0.1; done")
    daemon.kill()
    assert alive(pid)
    daemon.start(timeout=120)
    assert box.process.pid == pid
    assert box.exec("exit 4") == 4
    assert box.metrics().pids.current >= 1
    daemon.kill()
    os.kill(pid, 15)
    until(lambda: not alive(pid), "the end of the container")
    daemon.start(timeout=120)
    assert box.wire.wait(box.id) == 5
    assert box.end() == 5


@boxes
def test_a_dead_shim_is_replaced(box: Box) -> None:
    pid = box.run("sleep 600")
    shim = parent_of(pid)
    assert shim != 1
    os.kill(shim, 9)
    until(lambda: not alive(shim), "the end of the shim")
    assert box.exec("exit 4") == 4  # waits for the new one
    assert box.process.pid == pid
    assert box.metrics().pids.current == 1
    box.wire.tasks.Pause(pb.PauseTaskRequest(container_id=box.id))
    box.wire.tasks.Resume(pb.ResumeTaskRequest(container_id=box.id))
    assert box.end() in (137, 255)  # this kernel tells the status to nobody but the parent


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint(box: Box, **options: Any) -> list[types_pb2.Descriptor]:
    request = pb.CheckpointTaskRequest(container_id=box.id)
    if options:
        request.options.CopyFrom(packed(options_pb2.CheckpointOptions(**options)))
    with criu_log():
        return list(box.wire.tasks.Checkpoint(request).descriptors)


@contextlib.contextmanager
def criu_log() -> Iterator[None]:
    """Shows the log that the failure of a block names."""
    try:
        yield
    except grpc.RpcError as error:
        for log in re.findall(r"/\S+\.log", str(error.details())):
            if os.path.exists(log):
                print("\n".join(Path(log).read_text().splitlines()[-40:]))
        raise


def count(box: Box) -> int:
    """What the container has counted to: it is in its memory, and in a file of its root."""
    file = Path(f"/proc/{box.process.pid}/root/count")
    while file.exists():
        if text := file.read_text().strip():
            return int(text)
    return 0


def restored(box: Box, log: Path, least: int, **task: Any) -> None:
    """Makes a task from a checkpoint, sees that it goes on from ``least``, and ends it."""
    assert box.create(**task) == 0
    assert box.process.status == task_pb2.CREATED
    with criu_log():
        pid = box.wire.start(box.id)
    assert box.process.pid == pid > 0
    assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::/{NAMESPACE}/{box.id}\n"
    until(grows(log), "output after the restore")
    assert least <= count(box) < least + 30
    assert box.exec("exit 6") == 6
    assert box.metrics().pids.current >= 1
    box.wire.kill(box.id)
    assert box.wire.wait(box.id) == 137
    box.wire.delete_task(box.id)
    box.gone()


@runc
def test_a_checkpoint_goes_on_where_it_was(box: Box) -> None:
    log, image = Path("/tmp", box.id), f"/tmp/{box.id}-image"
    streams = {"stdout": f"file://{log}"}
    box.make(COUNT)
    box.create(**streams)
    box.wire.start(box.id)
    until(lambda: count(box) > 3, "counting")
    first = count(box)
    with box.wire.record() as events:
        blob, config = checkpoint(box)
        events.expect("/tasks/checkpointed")
    assert blob.media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
    assert config.media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
    until(grows(log), "counting after the checkpoint")
    until(lambda: count(box) > first + 30, "more counting than restoring takes")

    checkpoint(box, exit=True, image_path=image, work_path=f"/tmp/{box.id}-work")
    assert Path(f"/tmp/{box.id}-work", "dump.log").exists()
    assert box.wire.wait(box.id) == 137
    last = count_of(box)
    box.wire.delete_task(box.id)
    box.gone()
    work = Path(f"/tmp/{box.id}-restore")
    options = options_pb2.Options(criu_image_path=image, criu_work_path=str(work))
    restored(box, log, last, options=options, **streams)
    assert (work / "restore.log").exists()
    # The default runtime here cannot restore, so the one that can is taken.
    box.runtime = ""
    restored(box, log, first, checkpoint=blob, **streams)


@runc
def test_ctr_checkpoints_what_it_pauses_meanwhile(box: Box) -> None:
    """And what has a terminal, which is another one after the restore."""

    def on_terminal(spec: dict[str, Any]) -> None:
        spec["process"]["terminal"] = True
        options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        spec["mounts"].append(
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}
        )

    log, image = Path("/tmp", box.id), f"/tmp/{box.id}-image"
    streams = {"stdout": f"file://{log}", "terminal": True}
    box.make(COUNT, on_terminal)
    box.create(**streams)
    box.wire.start(box.id)
    until(lambda: count(box) > 3, "counting")
    first = count(box)
    ctr = ["ctr", "-a", box.wire.address, "-n", NAMESPACE, "tasks", "checkpoint"]
    done = subprocess.run(
        [*ctr, "--image-path", image, box.id], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert box.process.status == task_pb2.RUNNING
    until(grows(log), "counting after the checkpoint")
    box.wire.kill(box.id)
    box.wire.wait(box.id)
    box.wire.delete_task(box.id)
    restored(box, log, first, options=options_pb2.Options(criu_image_path=image), **streams)


def grows(log: Path) -> Callable[[], bool]:
    size = log.stat().st_size
    return lambda: log.stat().st_size > size


def count_of(box: Box) -> int:
    """The count of a container that has ended, from its snapshot."""
    request = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=box.id)
    (mount,) = box.wire.snapshots.Mounts(request).mounts
    (upper,) = (o.partition("=")[2] for o in mount.options if o.startswith("upperdir="))
    return int(Path(upper, "count").read_text())


def sctl(box: Box, *words: str) -> str:
    """Runs ``sctl``; answers what it prints."""
    where = ["--address", box.wire.address, "--namespace", NAMESPACE]
    done = subprocess.run(
        [sys.executable, "-m", "supervisord.cli.main", *where, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@runc
def test_sctl_checkpoints_and_goes_on(box: Box) -> None:
    """From an image that another checkpoint follows, and from the folder of that."""
    log, image, pid_file = (Path(f"/tmp/{box.id}-{name}") for name in ("log", "image", "pid"))
    start = ["tasks", "start", "-d", "--log-uri", str(log), "--pid-file", str(pid_file)]
    box.make(COUNT)
    box.create(stdout=f"file://{log}")
    box.wire.start(box.id)
    until(lambda: count(box) > 3, "counting")
    first = count(box)
    name = sctl(box, "tasks", "checkpoint", box.id)
    most = count(box)
    assert box.process.status == task_pb2.RUNNING
    assert name in sctl(box, "images", "ls", "-q")
    until(lambda: count(box) > most + 1, "counting after the checkpoint")
    sctl(box, "tasks", "checkpoint", "--exit", "--image-path", str(image), box.id)
    assert box.wire.wait(box.id) == 137
    last = count_of(box)
    for source, low, high in ((str(image), last, last), (name, first, most)):
        sctl(box, "tasks", "rm", box.id)
        size = log.stat().st_size
        sctl(box, *start, "--checkpoint", source, box.id)
        assert int(pid_file.read_text()) == box.process.pid > 0
        until(lambda: b"\n" in log.read_bytes()[size:], "output after the restore")  # noqa: B023
        assert low <= int(log.read_bytes()[size:].split()[0]) <= high + 1
        box.wire.kill(box.id)
        box.wire.wait(box.id)
    box.end()


@crun
def test_a_runtime_without_checkpoints_says_so(box: Box) -> None:
    box.run("sleep 600")
    with box.wire.refused(grpc.StatusCode.FAILED_PRECONDITION, "crun"):
        checkpoint(box)
    assert box.process.status == task_pb2.RUNNING
    box.end()
