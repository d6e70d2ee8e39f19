"""``ctr containers`` and ``ctr tasks``: create, start, list, exec, kill, pause, metrics, remove."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from .daemons import alive
from .fixtures import Shop


@pytest.fixture
def sleeper(shop: Shop, unique: str) -> str:
    """The id of a running container."""
    shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
    return unique


def status(shop: Shop, id: str) -> str:
    """The status of a task as ``ctr t ls`` shows it."""
    return {row[0]: row[2] for row in shop.ctr("t", "ls").rows()}.get(id, "absent")


def until(condition: Callable[[], bool], what: str, timeout: float = 8) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout} s"
        time.sleep(0.03)


def test_container_create_info_label_list_remove(shop: Shop, unique: str) -> None:
    shop.ctr("c", "create", "--label", "a=b", shop.image, unique, "sleep", "600")
    (row,) = shop.ctr("c", "ls").rows()
    assert row == [unique, shop.image, "io.containerd.runc.v2"]
    info = json.loads(shop.ctr("c", "info", unique).out)
    assert info["ID"] == unique
    assert info["Image"] == shop.image
    assert info["SnapshotKey"] == unique
    assert info["Snapshotter"] == "overlayfs"
    assert info["Runtime"]["Name"] == "io.containerd.runc.v2"
    assert info["Labels"]["a"] == "b"
    assert info["Spec"]["process"]["args"] == ["sleep", "600"]
    assert info["Spec"]["linux"]["cgroupsPath"] == f"/{shop.namespace}/{unique}"
    assert info["CreatedAt"] == info["UpdatedAt"]
    shop.ctr("c", "label", unique, "a=", "c=d")
    info = json.loads(shop.ctr("c", "info", unique).out)
    assert info["Labels"]["c"] == "d"
    assert "a" not in info["Labels"]
    assert info["CreatedAt"] < info["UpdatedAt"]
    assert shop.ctr("c", "ls", "-q", "labels.c==d").out.split() == [unique]
    assert shop.ctr("c", "ls", "-q", "labels.c==x").out == ""
    assert shop.ctr("t", "ls").rows() == []
    shop.ctr.refused("c", "create", shop.image, unique, says="already exists")
    shop.ctr("c", "rm", unique)
    assert shop.ctr("c", "ls", "-q").out == ""
    shop.ctr.refused("c", "info", unique, says="not found")
    assert unique not in shop.ctr("snapshots", "ls").out


def test_start_a_created_container(shop: Shop, unique: str) -> None:
    shop.ctr("c", "create", shop.image, unique, "--", "sh", "-c", "echo hello; exit 3")
    assert shop.ctr("t", "start", unique, code=3).out == "hello\n"
    assert status(shop, unique) == "absent"
    shop.ctr("c", "create", shop.image, unique + "d", "sleep", "600")
    shop.ctr("t", "start", "-d", unique + "d")
    assert status(shop, unique + "d") == "RUNNING"
    shop.ctr.refused("t", "start", "-d", unique + "d", says="already exists")


def test_running_container_and_task_are_not_removed(shop: Shop, sleeper: str) -> None:
    shop.ctr.refused("c", "rm", sleeper)
    shop.ctr.refused("t", "rm", sleeper, says="failed precondition")
    assert status(shop, sleeper) == "RUNNING"


def test_task_list_and_processes(shop: Shop, sleeper: str) -> None:
    (row,) = shop.ctr("t", "ls").rows()
    assert shop.ctr("t", "ls", "-q").out.split() == [sleeper]
    rows = shop.ctr("t", "ps", sleeper).rows()
    assert [r[0] for r in rows] == [row[1]]
    with shop.ctr.background("t", "exec", "--exec-id", "x", sleeper, "sleep", "600"):
        until(lambda: len(shop.ctr("t", "ps", sleeper).rows()) == 2, "the exec's process")


def test_exec_output_exit_code_and_settings(shop: Shop, sleeper: str) -> None:
    script = "echo out; echo err >&2; exit 7"
    result = shop.ctr("t", "exec", "--exec-id", "e", sleeper, "sh", "-c", script, code=7)
    assert (result.out, result.err) == ("out\n", "err\n")
    result = shop.ctr("t", "exec", "--exec-id", "e", "--cwd", "/data", sleeper, "pwd")
    assert result.out == "/data\n"
    result = shop.ctr("t", "exec", "--exec-id", "e", "--user", "1000:1000", sleeper, "id", "-u")
    assert result.out == "1000\n"
    result = shop.ctr("t", "exec", "--exec-id", "e", sleeper, "sh", "-c", "echo $FROM_IMAGE")
    assert result.out == "yes\n"
    assert status(shop, sleeper) == "RUNNING"


def test_exec_copies_its_standard_input(shop: Shop, sleeper: str) -> None:
    arguments = ("t", "exec", "--exec-id", "e", sleeper, "cat")
    with shop.ctr.background(*arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"first\n", b"second\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        process.stdin = None
        assert process.wait(10) == 0


def test_exec_of_a_missing_command_says_so(shop: Shop, sleeper: str) -> None:
    shop.ctr.refused("t", "exec", "--exec-id", "e", sleeper, "no-such-one", says="no-such-one")
    shop.ctr("t", "exec", "--exec-id", "e", sleeper, "true")
    assert len(shop.ctr("t", "ps", sleeper).rows()) == 1


def test_exec_with_a_taken_id_is_refused(shop: Shop, sleeper: str) -> None:
    with shop.ctr.background("t", "exec", "--exec-id", "e", sleeper, "sleep", "600"):
        until(lambda: len(shop.ctr("t", "ps", sleeper).rows()) == 2, "the exec's process")
        shop.ctr.refused("t", "exec", "--exec-id", "e", sleeper, "true", says="already exists")


def test_exec_in_an_absent_container(shop: Shop, unique: str) -> None:
    shop.ctr.refused("t", "exec", "--exec-id", "e", unique, "true", says="not found")


def test_kill_and_remove(shop: Shop, sleeper: str) -> None:
    pid = int(shop.ctr("t", "ls").rows()[0][1])
    shop.ctr("t", "kill", "-a", "-s", "SIGKILL", sleeper)
    until(lambda: status(shop, sleeper) == "STOPPED", "the end of the task")
    assert not alive(pid)
    assert "137" in shop.ctr("t", "rm", sleeper).err
    assert status(shop, sleeper) == "absent"
    shop.ctr("c", "rm", sleeper)
    shop.ctr.refused("t", "kill", sleeper, says="not found")


def test_kill_reaches_one_exec_only(shop: Shop, sleeper: str) -> None:
    arguments = ("t", "exec", "--exec-id", "e", sleeper, "sleep", "600")
    with shop.ctr.background(*arguments) as process:
        until(lambda: len(shop.ctr("t", "ps", sleeper).rows()) == 2, "the exec's process")
        shop.ctr("t", "kill", "--exec-id", "e", "-s", "9", sleeper)
        assert process.wait(10) == 137
    assert status(shop, sleeper) == "RUNNING"


def test_kill_all_ends_children_too(shop: Shop, unique: str) -> None:
    script = "sleep 600 & sleep 600 & echo up; wait"
    shop.ctr("run", "-d", shop.image, unique, "sh", "-c", script)
    until(lambda: len(shop.ctr("t", "ps", unique).rows()) == 3, "three processes")
    pids = [int(row[0]) for row in shop.ctr("t", "ps", unique).rows()]
    shop.ctr("t", "kill", "-a", "-s", "KILL", unique)
    until(lambda: status(shop, unique) == "STOPPED", "the end of the task")
    until(lambda: not any(alive(pid) for pid in pids), "the end of all processes")


def test_force_remove_of_a_running_task(shop: Shop, sleeper: str) -> None:
    shop.ctr("t", "rm", "--force", sleeper)
    assert status(shop, sleeper) == "absent"


def test_pause_and_resume(shop: Shop, unique: str) -> None:
    script = "while true; do date +%s%N > /tick; sleep 0.02; done"
    shop.ctr("run", "-d", shop.image, unique, "sh", "-c", script)

    def tick() -> str:
        return shop.ctr("t", "exec", "--exec-id", "e", unique, "cat", "/tick").out

    until(
        lambda: (
            "1" in shop.ctr("t", "exec", "--exec-id", "e", unique, "ls", "/tick", code=None).out
            or tick() != ""
        ),
        "the first tick",
    )
    shop.ctr("t", "pause", unique)
    assert status(shop, unique) == "PAUSED"
    shop.ctr("t", "resume", unique)
    assert status(shop, unique) == "RUNNING"
    first = tick()
    until(lambda: tick() != first, "the next tick")


def test_metrics(shop: Shop, unique: str) -> None:
    limit = 64 << 20
    shop.ctr("run", "-d", "--memory-limit", str(limit), shop.image, unique, "sleep", "600")
    metrics = json.loads(shop.ctr("t", "metrics", "--format", "json", unique).out)
    assert metrics["pids"]["current"] == 1
    text = shop.ctr("t", "metrics", unique).out
    assert unique in text
    values = {
        row[0]: row[1] for row in (line.split() for line in text.splitlines()) if len(row) > 1
    }
    assert values["pids.current"] == "1"
    limits = [values[k] for k in ("memory.limit_in_bytes", "memory.usage_limit") if k in values]
    assert limits == [str(limit)]
    usages = [values[k] for k in ("memory.usage_in_bytes", "memory.usage") if k in values]
    assert 0 < int(usages[0]) < limit


def test_attach_sees_output_and_exit_code(shop: Shop, unique: str) -> None:
    script = "read line; echo got $line; exit 8"
    shop.ctr("c", "create", shop.image, unique, "--", "sh", "-c", script)
    with shop.ctr.background("t", "start", unique) as starter:
        until(lambda: status(shop, unique) == "RUNNING", "the start")
        starter.kill()
        starter.wait()
        with shop.ctr.background("t", "attach", unique) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got hello\n"
            assert process.wait(10) == 8


def test_out_of_memory_is_an_exit_of_137(shop: Shop, unique: str) -> None:
    script = "x=$(yes | tr '\\n' x | head -c 200000000); echo never"
    result = shop.ctr(
        "run",
        "--rm",
        "--memory-limit",
        str(16 << 20),
        shop.image,
        unique,
        "sh",
        "-c",
        script,
        code=None,
    )
    assert result.code in (137, 2, 1)
    assert "never" not in result.out
