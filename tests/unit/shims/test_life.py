"""The life of tasks in a real shim: states, exits, execs, kills, and their order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.task.v2 import shim_pb2 as v2
from protos.containerd.task.v3 import shim_pb2 as v3
from protos.containerd.v1.types import task_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from supervisord.linux import mount

from .conftest import RUNTIME, ShimRoom, eventually, needs_root

pytestmark = needs_root


async def test_a_life(shims: ShimRoom) -> None:
    shim = await shims.shim("life", "/bin/sh", "-c", "exit 42")
    pid = await shim.create()
    state = await shim.state()
    assert (state.id, state.pid, state.status) == ("life", pid, task_pb2.CREATED)
    assert state.bundle == str(shim.bundle)
    waiting = asyncio.create_task(shim.wait())
    assert await shim.start() == pid
    assert await waiting == 42
    state = await shim.state()
    assert (state.status, state.exit_status) == (task_pb2.STOPPED, 42)
    assert abs(state.exited_at.seconds - time.time()) < 10
    record = json.loads((shim.bundle / "exits/init.json").read_text())
    assert (record["pid"], record["exit_status"]) == (pid, 42)
    assert record["exited_at_ns"] == state.exited_at.seconds * 10**9 + state.exited_at.nanos
    answer = await shim.delete()
    assert (answer.pid, answer.exit_status) == (pid, 42)
    assert not mount.mounted(str(shim.bundle / "rootfs"))
    await shims.events.until("/tasks/delete")
    assert shims.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    (created,) = shims.events.of("/tasks/create")
    assert (created.container_id, created.pid, created.rootfs[0].type) == ("life", pid, "bind")
    (exited,) = shims.events.of("/tasks/exit")
    assert (exited.container_id, exited.id, exited.exit_status) == ("life", "life", 42)
    await shim.call("Shutdown", Empty)
    await eventually(lambda: not Path(f"/proc/{shim.pid}").exists())
    assert "error" not in shim.log


async def test_an_id_can_be_used_again(shims: ShimRoom) -> None:
    shim = await shims.shim("again", "/bin/true")
    for _ in range(2):
        await shim.create()
        with pytest.raises(AlreadyExists, match="already exists"):
            await shim.create()
        await shim.start()
        assert await shim.wait() == 0
        await shim.delete()
        with pytest.raises(NotFound):
            await shim.state()


async def test_version_2_is_served_too(shims: ShimRoom) -> None:
    shim = await shims.shim("two", "/bin/sleep", "60")
    pid = await shim.create()
    service = "containerd.task.v2.Task"
    state = await shim.call("State", v2.StateResponse, v2.StateRequest(id="two"), service=service)
    assert (state.pid, state.status) == (pid, task_pb2.CREATED)
    connected = await shim.call("Connect", v3.ConnectResponse)
    assert (connected.shim_pid, connected.task_pid) == (shim.pid, pid)
    with pytest.raises(Unimplemented):
        await shim.call("Nothing", Empty, v2.StateRequest(), service=service)


async def test_a_shim_is_a_process_in_its_own_right(shims: ShimRoom) -> None:
    shim = await shims.shim("own", "/bin/true")
    status = Path(f"/proc/{shim.pid}/status").read_text()
    assert "Name:\tsupervisord-shi" in status
    assert os.getsid(shim.pid) == shim.pid
    assert os.readlink(f"/proc/{shim.pid}/cwd") == "/"
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{shim.pid}/oom_score_adj").read_text()) == min(own + 1, 1000)
    parent = int(status.split("PPid:")[1].split()[0])
    assert parent not in (os.getpid(), await shims.zygote.start("shim"))
    await shims.zygote.close()
    assert (await shim.call("Connect", v3.ConnectResponse)).shim_pid == shim.pid
    os.kill(shim.pid, signal.SIGTERM)
    assert (await shim.call("Connect", v3.ConnectResponse)).shim_pid == shim.pid


async def test_what_the_states_refuse(shims: ShimRoom) -> None:
    shim = await shims.shim("refuse", "/bin/sleep", "60")
    for method in ("Start", "State", "Delete", "Pause", "Wait", "Pids", "Stats"):
        with pytest.raises(NotFound, match="container not created"):
            await shim.call(method, Empty)
    await shim.create()
    with pytest.raises(FailedPrecondition, match="cannot pause a created container"):
        await shim.call("Pause", Empty)
    await shim.start()
    with pytest.raises(FailedPrecondition, match="cannot start a running process"):
        await shim.start()
    with pytest.raises(FailedPrecondition, match="cannot delete a running process"):
        await shim.delete()
    with pytest.raises(FailedPrecondition, match="cannot resume a running container"):
        await shim.call("Resume", Empty)
    with pytest.raises(NotFound, match="process does not exist"):
        await shim.kill(9, exec_id="nobody")
    with pytest.raises(InvalidArgument, match="999"):
        await shim.kill(999)
    await shim.call("Shutdown", Empty)  # refused silently: the shim has a container
    await shim.kill(9)
    assert await shim.wait() == 137
    with pytest.raises(NotFound, match="process already finished"):
        await shim.kill(9)
    with pytest.raises(FailedPrecondition, match="cannot start a stopped process"):
        await shim.start()
    assert (await shim.delete()).exit_status == 137


async def test_delete_of_what_was_never_started(shims: ShimRoom) -> None:
    shim = await shims.shim("never", "/bin/sleep", "60")
    pid = await shim.create()
    waiting = asyncio.create_task(shim.wait())
    answer = await shim.delete()
    assert (answer.pid, answer.exit_status) == (pid, 137)
    assert await waiting == 137
    assert not Path(f"/proc/{pid}").exists()


async def test_a_missing_command_says_so_and_leaves_nothing(shims: ShimRoom) -> None:
    shim = await shims.shim("missing", "/bin/absent")
    with pytest.raises(Unknown, match=r"(?i)OCI runtime create failed: .*absent.*no such file"):
        await shim.create()
    assert not mount.mounted(str(shim.bundle / "rootfs"))
    assert not (shims.base / "rt/ns/missing").exists()
    (shim.bundle / "config.json").write_text(
        (shim.bundle / "config.json").read_text().replace("absent", "true")
    )
    await shim.create()
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()


async def test_a_missing_runtime_says_so(shims: ShimRoom) -> None:
    shim = await shims.shim("norun", "/bin/true", runtime="absent-runtime")
    with pytest.raises(Unknown, match='"absent-runtime": executable file not found'):
        await shim.create()
    options = options_pb2.Options(binary_name=RUNTIME)
    request = v3.CreateTaskRequest(id="norun", bundle=str(shim.bundle))
    request.options.type_url = "containerd.runc.v1.Options"
    request.options.value = options.SerializeToString()
    request.rootfs.add(type="bind", source=str(shims.rootfs), options=["rbind", "ro"])
    assert (await shim.call("Create", v3.CreateTaskResponse, request)).pid > 0
    assert json.loads((shim.bundle / "runtime.json").read_text()) == {
        "binary": RUNTIME,
        "root": str(shims.base / "rt/ns"),
        "systemd_cgroup": False,
        "owner": [0, 0],
        "streams": ["", "", "", False],
        "pipes": [0, 0, 0],
    }
    await shim.delete()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a/../b"}, "id: identifier"),
        ({"bundle": "/nowhere"}, "bundle: '/nowhere' has no config.json"),
        ({"options": {"type_url": "other", "value": b"x"}}, "options: type 'other'"),
        ({"stdout": "/nowhere/out"}, "stdout: opening '/nowhere/out'"),
        ({"stdin": "/dev/null"}, "stdin: '/dev/null' is no fifo"),
        ({"stderr": "odd:///x"}, "stderr: unknown STDIO scheme 'odd'"),
        ({"rootfs": [{"type": "nofs", "source": "x"}]}, "mount"),
    ],
)
async def test_bad_input_leaves_nothing(
    shims: ShimRoom, change: dict[str, object], message: str
) -> None:
    shim = await shims.shim("bad", "/bin/true")
    before = shim.fds()
    fields = {"id": "bad", "bundle": str(shim.bundle)} | change
    with pytest.raises((InvalidArgument, Unknown), match=message):
        await shim.call("Create", v3.CreateTaskResponse, v3.CreateTaskRequest(**fields))  # type: ignore[arg-type]
    assert shim.fds() == before
    assert not mount.mounted(str(shim.bundle / "rootfs"))
    with pytest.raises(NotFound):
        await shim.state()


async def test_execs(shims: ShimRoom) -> None:
    shim = await shims.shim("execs", "/bin/sleep", "60")
    await shim.create()
    await shim.start()
    before = shim.fds()
    await shim.exec("one", "/bin/sh", "-c", "exit 7")
    with pytest.raises(AlreadyExists, match="id one: already exists"):
        await shim.exec("one", "/bin/true")
    with pytest.raises(FailedPrecondition, match="process not created"):
        await shim.kill(9, exec_id="one")
    assert (await shim.state("one")).status == task_pb2.CREATED
    pid = await shim.start("one")
    assert await shim.wait("one") == 7
    assert json.loads((shim.bundle / "exits/one.json").read_text())["exit_status"] == 7
    answer = await shim.delete("one")
    assert (answer.pid, answer.exit_status) == (pid, 7)
    assert not list((shim.bundle / "exits").iterdir())
    with pytest.raises(NotFound):
        await shim.state("one")
    await shim.exec("init", "/bin/sleep", "60")  # an id like any other
    await shim.start("init")
    await shim.kill(15, exec_id="init")
    assert await shim.wait("init") == 128 + 15
    assert (shim.bundle / "exits/init_.json").exists()
    await shim.delete("init")
    assert (shim.bundle / "init.pid").exists()  # init's own
    await shim.exec("gone", "/bin/absent")
    with pytest.raises(Unknown, match=r"OCI runtime exec failed: .*absent"):
        await shim.start("gone")
    await shim.wait("gone")  # ends at once
    await shim.delete("gone")
    assert shim.fds() == before
    await shims.events.until("/tasks/exit", 2)
    assert [topic for topic in shims.events.topics if "exec" in topic or "exit" in topic] == [
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exec-added",
    ]


async def test_exits_of_execs_come_before_that_of_init(shims: ShimRoom) -> None:
    shim = await shims.shim("order", "/bin/sleep", "60")
    await shim.create()
    await shim.start()
    for number in range(3):
        await shim.exec(f"e{number}", "/bin/sleep", "60")
        await shim.start(f"e{number}")
    await shim.exec("late", "/bin/true")
    await shim.kill(9)
    assert await shim.wait() == 137
    with pytest.raises(FailedPrecondition, match="init process is not running"):
        await shim.start("late")
    with pytest.raises(FailedPrecondition, match="cannot exec in a stopped container"):
        await shim.exec("later", "/bin/true")
    await shims.events.until("/tasks/exit", 4)
    ids = [event.id for event in shims.events.of("/tasks/exit")]
    assert sorted(ids[:3]) == ["e0", "e1", "e2"]
    assert ids[3] == "order"
    await shim.delete()


async def test_without_a_pid_namespace_nobody_outlives_init(shims: ShimRoom) -> None:
    shim = await shims.shim(
        "shared",
        "/bin/sh",
        "-c",
        "sleep 61 & sleep 61 & exec sleep 0.5",
        namespaces=[{"type": "mount"}, {"type": "ipc"}],
    )
    await shim.create()
    await shim.start()
    pids: list[int] = []
    async with asyncio.timeout(5):
        while len(pids) < 3:
            pids = [info.pid for info in (await shim.call("Pids", v3.PidsResponse)).processes]
    assert await shim.wait() == 0
    await shim.delete()
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_pids_stats_and_update(shims: ShimRoom) -> None:
    shim = await shims.shim("stats", "/bin/sleep", "60")
    pid = await shim.create()
    await shim.start()
    await shim.exec("one", "/bin/sleep", "60")
    other = await shim.start("one")
    infos = (await shim.call("Pids", v3.PidsResponse)).processes
    assert {info.pid for info in infos} == {pid, other}
    (info,) = (info.info for info in infos if info.pid == other)
    assert info.type_url == "containerd.runc.v1.ProcessDetails"
    assert options_pb2.ProcessDetails.FromString(info.value).exec_id == "one"
    stats = (await shim.call("Stats", v3.StatsResponse)).stats
    assert stats.type_url in (
        "io.containerd.cgroups.v1.Metrics",
        "io.containerd.cgroups.v2.Metrics",
    )
    assert stats.value
    request = v3.UpdateTaskRequest(id="stats")
    request.resources.value = json.dumps({"pids": {"limit": 77}}).encode()
    await shim.call("Update", Empty, request)
    folder = next(
        line.split(":")[2]
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if "pids" in line.split(":")[1] or line.startswith("0::")
    )
    limits = [Path(f"/sys/fs/cgroup{sub}{folder}/pids.max") for sub in ("/pids", "")]
    assert "77" in [limit.read_text().strip() for limit in limits if limit.exists()]


async def test_pause_and_resume(shims: ShimRoom) -> None:
    shim = await shims.shim("pause", "/bin/sleep", "60")
    await shim.create()
    await shim.start()
    await shim.call("Pause", Empty)
    assert (await shim.state()).status == task_pb2.PAUSED
    with pytest.raises(FailedPrecondition, match="cannot exec in a paused container"):
        await shim.exec("one", "/bin/true")
    with pytest.raises(FailedPrecondition, match="cannot pause a paused container"):
        await shim.call("Pause", Empty)
    await shim.call("Resume", Empty)
    assert (await shim.state()).status == task_pb2.RUNNING
    await shim.call("Pause", Empty)
    await shim.kill(9)  # must end although it is frozen
    assert await shim.wait() == 137
    await shim.delete()
    await shims.events.until("/tasks/delete")
    assert [topic for topic in shims.events.topics if topic.endswith("ed")] == [
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/paused",
    ]


async def test_a_checkpoint_that_cannot_be_does_no_harm(shims: ShimRoom, tmp_path: Path) -> None:
    """The runtime is a link to runc whose name says that it may have been built without CRIU."""
    (tmp_path / "crun").symlink_to("/usr/sbin/runc")
    shim = await shims.shim("criu", "/bin/sleep", "60", runtime=str(tmp_path / "crun"))
    await shim.create()
    with pytest.raises(FailedPrecondition, match="cannot checkpoint a created container"):
        await shim.call("Checkpoint", Empty, path=str(shims.base / "image"))
    await shim.start()
    with pytest.raises(FailedPrecondition, match=r"criu|CRIU"):
        await shim.call("Checkpoint", Empty, path=str(shims.base / "image"))
    request = v3.CheckpointTaskRequest(id="criu", path=str(shims.base / "image"))
    request.options.Pack(options_pb2.CheckpointOptions(cgroups_mode="odd"))
    with pytest.raises(InvalidArgument, match="cgroups_mode must be one of soft, full"):
        await shim.call("Checkpoint", Empty, request)
    assert (await shim.state()).status == task_pb2.RUNNING
    assert not (shims.base / "image").exists()


async def test_events_wait_for_the_daemon(shims: ShimRoom) -> None:
    await shims.events.close()
    shim = await shims.shim("away", "/bin/sh", "-c", "exit 3")
    await shim.create()
    await shim.start()
    assert await shim.wait() == 3
    await asyncio.sleep(1)  # by now it waits longer between its tries
    await shims.events.open()
    started = time.monotonic()
    (await shim.call("Connect", v3.ConnectResponse))
    shim.client.close()
    from supervisord.ttrpc.client import Client

    shim.client = await Client.connect(shim.address)
    await shims.events.until("/tasks/exit")
    assert time.monotonic() - started < 0.5
    assert shims.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    await shim.delete()


async def test_a_lost_connection_ends_waits_and_nothing_else(shims: ShimRoom) -> None:
    shim = await shims.shim("lost", "/bin/sleep", "60")
    await shim.create()
    await shim.start()
    waiting = asyncio.create_task(shim.wait())
    await asyncio.sleep(0.05)
    shim.client.close()
    with pytest.raises(Unavailable):
        await waiting
    from supervisord.ttrpc.client import Client

    shim.client = await Client.connect(shim.address)
    await shim.kill(9)
    assert await shim.wait() == 137


async def test_hooks_after_the_start_are_the_runtimes(shims: ShimRoom) -> None:
    shim = await shims.shim("hooks", "/bin/sh", "-c", "exit 2")
    config = json.loads((shim.bundle / "config.json").read_text())
    mark = shims.base / "mark"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo $0 >> {mark}"]}
    config["hooks"] = {
        name: [{**hook, "args": [*hook["args"], name]}] for name in ("poststart", "poststop")
    }
    (shim.bundle / "config.json").write_text(json.dumps(config))
    await shim.create()
    await shim.start()
    assert await shim.wait() == 2
    await shim.delete()
    assert mark.read_text().split() == ["poststart", "poststop"]


async def test_many_at_a_time(shims: ShimRoom) -> None:
    async def life(number: int) -> int:
        shim = await shims.shim(f"many{number}", "/bin/sh", "-c", f"exit {number}")
        await shim.create()
        await shim.start()
        status = await shim.wait()
        await shim.delete()
        await shim.call("Shutdown", Empty)
        return status

    statuses = await asyncio.gather(*(life(number) for number in range(8)))
    assert statuses == list(range(8))
