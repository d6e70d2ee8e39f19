"""``ctr run``: output, exit codes, options, and what a failed run leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from .daemons import Daemon, alive, cgroup_folders
from .fixtures import Shop

MIB = 1 << 20


def test_output_and_exit_code(shop: Shop, unique: str) -> None:
    result = shop.ctr(
        "run", "--rm", shop.image, unique, "sh", "-c", "echo out; echo err >&2; exit 42", code=42
    )
    assert result.out == "out\n"
    assert result.err == "err\n"
    assert shop.ctr("c", "ls", "-q").out == ""
    assert unique not in shop.ctr("snapshots", "ls").out


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("sh -c 'kill -9 $$'; exit $?", 137)]
)
def test_exit_codes(shop: Shop, unique: str, script: str, code: int) -> None:
    shop.ctr("run", "--rm", shop.image, unique, "sh", "-c", script, code=code)


def test_twenty_megabytes_of_output_arrive_whole(shop: Shop, unique: str) -> None:
    done = shop.ctr.raw(
        "run", "--rm", shop.image, unique, "sh", "-c", "yes 0123456789abcdef | head -c 20971520"
    )
    assert done.returncode == 0
    assert len(done.stdout) == 20 * MIB
    expected = (b"0123456789abcdef\n" * (20 * MIB // 17 + 1))[: 20 * MIB]
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(expected).digest()


def test_output_and_errors_interleaved_arrive_whole(
    shop: Shop, daemon: Daemon, unique: str
) -> None:
    script = "yes out | head -c 2000000 & yes err | head -c 2000000 >&2; wait"
    # Once, on a busy machine, containerd 1.6 did not deliver all of it.
    for attempt in range(1 if daemon.ours else 3):
        name = f"{unique}-{attempt}"
        done = shop.ctr.raw("run", "--rm", shop.image, name, "sh", "-c", script)
        whole = done.stdout == b"out\n" * 500_000 and done.stderr == b"err\n" * 500_000
        if whole:
            break
    assert whole, f"{len(done.stdout)} bytes of output, {len(done.stderr)} of errors"


def test_standard_input_arrives_whole_and_ends(shop: Shop, unique: str) -> None:
    data = os.urandom(2 * MIB)
    done = shop.ctr.raw("run", "--rm", shop.image, unique, "sha256sum", input=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_missing_command_says_so_and_leaves_nothing(
    shop: Shop, daemon: Daemon, unique: str
) -> None:
    before = set(daemon.processes())
    mounts = daemon.mounts()
    result = shop.ctr.refused("run", "--rm", shop.image, unique, "no-such-command")
    assert "no-such-command" in result.err
    assert "not found" in result.err
    assert shop.ctr("t", "ls").rows() == []
    assert shop.ctr("c", "ls", "-q").out == ""
    assert unique not in shop.ctr("snapshots", "ls").out
    assert cgroup_folders(f"/{shop.namespace}/{unique}") == []
    assert daemon.mounts() == mounts
    assert not list(daemon.state.rglob(f"*{unique}*"))
    deadline = time.monotonic() + 5
    while set(daemon.processes()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(daemon.processes()) - before
    shop.ctr("run", "--rm", shop.image, unique, "true")


def test_missing_command_without_rm_leaves_the_record_alone(shop: Shop, unique: str) -> None:
    shop.ctr.refused("run", shop.image, unique, "no-such-command", says="no-such-command")
    assert shop.ctr("t", "ls").rows() == []
    assert shop.ctr("c", "ls", "-q").out.split() == [unique]
    shop.ctr("c", "rm", unique)
    assert unique not in shop.ctr("snapshots", "ls").out


def test_taken_id_says_already_exists(shop: Shop, unique: str) -> None:
    shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
    shop.ctr.refused("run", "-d", shop.image, unique, "sleep", "600", says="already exists")
    (row,) = shop.ctr("t", "ls").rows()
    assert row[2] == "RUNNING"


def test_absent_image_says_not_found(shop: Shop, unique: str) -> None:
    shop.ctr.refused("run", "--rm", "docker.io/test/absent:1", unique, says="not found")


def test_detached_leaves_a_running_task(shop: Shop, unique: str) -> None:
    result = shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
    assert result.out == ""
    (row,) = shop.ctr("t", "ls").rows()
    assert row[0] == unique
    assert row[2] == "RUNNING"
    assert alive(int(row[1]))


def test_environment_and_working_folder(shop: Shop, unique: str) -> None:
    script = "echo $FROM_IMAGE $A $B; pwd"
    result = shop.ctr(
        "run",
        "--rm",
        "--env",
        "A=1",
        "--env",
        "B=two words",
        shop.image,
        unique,
        "sh",
        "-c",
        script,
    )
    assert result.out == "yes 1 two words\n/tmp\n"
    result = shop.ctr("run", "--rm", "--cwd", "/data", shop.image, unique + "b", "pwd")
    assert result.out == "/data\n"


def test_image_config_is_the_default(shop: Shop, unique: str) -> None:
    with shop.ctr.background("run", "--rm", shop.image, unique) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"echo from sh: $PWD\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"from sh: /tmp\n"
        process.stdin.close()
        process.stdin = None
        assert process.wait(10) == 0


def test_bind_mount(shop: Shop, unique: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from outside\n")
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:rw"
    script = "cat /mnt/in; echo from inside > /mnt/out"
    result = shop.ctr("run", "--rm", "--mount", mount, shop.image, unique, "sh", "-c", script)
    assert result.out == "from outside\n"
    assert (tmp_path / "out").read_text() == "from inside\n"
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    script = "echo x > /mnt/never"
    shop.ctr("run", "--rm", "--mount", mount, shop.image, unique, "sh", "-c", script, code=1)
    assert not (tmp_path / "never").exists()


def test_read_only_root(shop: Shop, unique: str) -> None:
    script = "touch /file"
    result = shop.ctr("run", "--rm", "--read-only", shop.image, unique, "sh", "-c", script, code=1)
    assert "Read-only file system" in result.err
    shop.ctr("run", "--rm", shop.image, unique, "sh", "-c", script)


def test_memory_limit_is_in_force(shop: Shop, unique: str) -> None:
    limit = 48 * MIB
    shop.ctr("run", "-d", "--memory-limit", str(limit), shop.image, unique, "sleep", "600")
    folders = cgroup_folders(f"/{shop.namespace}/{unique}")
    values = [
        (folder / name).read_text().strip()
        for folder in folders
        for name in ("memory.limit_in_bytes", "memory.max")
        if (folder / name).exists()
    ]
    assert values == [str(limit)]


def test_process_is_in_its_cgroup_and_namespaces(shop: Shop, unique: str) -> None:
    shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
    pid = int(shop.ctr("t", "ls").rows()[0][1])
    for folder in cgroup_folders(f"/{shop.namespace}/{unique}"):
        assert (folder / "cgroup.procs").read_text().split() == [str(pid)]
    for kind in ("pid", "mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_log_uri_file(shop: Shop, unique: str, tmp_path: Path) -> None:
    log = tmp_path / "folder" / "log"
    script = "echo out; echo err >&2; yes x | head -c 300000"
    shop.ctr("run", "-d", "--log-uri", f"file://{log}", shop.image, unique, "sh", "-c", script)
    deadline = time.monotonic() + 10
    while shop.ctr("t", "ls").rows()[0][2] != "STOPPED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shop.ctr("t", "rm", unique)
    content = log.read_bytes()
    assert b"out\n" in content
    assert b"err\n" in content  # another stream: its place among the rest is not promised
    assert len(content) == 8 + 300_000


def test_labels_and_pid_file(shop: Shop, unique: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    shop.ctr(
        "run", "-d", "--label", "a=b", "--pid-file", str(file), shop.image, unique, "sleep", "600"
    )
    assert int(file.read_text()) == int(shop.ctr("t", "ls").rows()[0][1])
    assert json.loads(shop.ctr("c", "info", unique).out)["Labels"]["a"] == "b"


def test_signals_reach_the_process(shop: Shop, unique: str) -> None:
    script = 'trap "echo got it; exit 3" TERM; echo ready; while true; do sleep 0.05; done'
    with shop.ctr.background("run", "--rm", shop.image, unique, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)  # ctr forwards signals from a moment after the start on
        process.terminate()
        assert process.stdout.readline() == b"got it\n"
        assert process.wait(10) == 3


def test_native_snapshotter(shop: Shop, unique: str) -> None:
    result = shop.ctr(
        "run", "--rm", "--snapshotter", "native", shop.image, unique, "cat", "/data/replaced"
    )
    assert result.out == "second\n"


def test_eight_at_once(shop: Shop, unique: str) -> None:
    running = [
        subprocess.Popen(
            shop.ctr.command("run", "--rm", shop.image, f"{unique}-{n}", "sh", "-c", f"exit {n}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(8)
    ]
    errors = [process.communicate(timeout=30)[1] for process in running]
    assert [process.returncode for process in running] == list(range(8)), errors
    assert shop.ctr("c", "ls", "-q").out == ""


def test_a_container_whose_reader_is_gone_goes_on(shop: Shop, unique: str, tmp_path: Path) -> None:
    """A client that dies does not take the container's output pipe with it."""
    script = "for n in 1 2 3 4 5 6; do echo line; sleep 0.1; done; sleep 600"
    with shop.ctr.background("run", shop.image, unique, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line\n"
        process.kill()
        process.wait()
    time.sleep(0.7)
    (row,) = shop.ctr("t", "ls").rows()
    assert row[2] == "RUNNING"
