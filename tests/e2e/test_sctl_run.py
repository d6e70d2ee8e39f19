"""``sctl run``, ``tasks`` and ``containers`` on real containers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.daemons import Daemon
from tests.e2e.conftest import Sctl, Stand


def until(condition: Callable[[], object], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def nothing_left(stand: Stand, id: str) -> bool:
    """No task, container or snapshot of that id."""
    listed = [
        stand.sctl("tasks", "ls", "-q").out,
        stand.sctl("containers", "ls", "-q").out,
        stand.sctl("snapshots", "ls", "-q").out,
    ]
    return not any(id in text.split() for text in listed)


def bare_root(root: Path) -> Path:
    """A folder that a container can have as its root."""
    for name in ("bin", "proc", "dev", "sys", "run"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    return root


def test_output_and_exit_code(stand: Stand, unique: str, tmp_path: Path) -> None:
    words = ["--fifo-dir", str(tmp_path), stand.image, unique]
    script = "echo out; echo err >&2; exit 42"
    result = stand.sctl("run", "--rm", *words, "sh", "-c", script, code=42)
    assert (result.out, result.err) == ("out\n", "err\n")
    assert nothing_left(stand, unique)
    assert list(tmp_path.iterdir()) == []


def test_twenty_megabytes_arrive_whole(stand: Stand, unique: str) -> None:
    script = "yes 0123456789abcde | head -c 20971520"
    done = stand.sctl.raw(*stand.run(unique, "sh", "-c", script))
    expected = (b"0123456789abcde\n" * (20 << 16))[: 20 << 20]
    assert done.returncode == 0
    assert len(done.stdout) == 20 << 20
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(expected).digest()


def test_stdin_is_copied_and_closed(stand: Stand, unique: str) -> None:
    data = os.urandom(3 << 20)
    result = stand.sctl(*stand.run(unique, "sha256sum"), input=data)
    assert result.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_missing_command_says_so_and_leaves_nothing(
    stand: Stand, unique: str, tmp_path: Path
) -> None:
    words = ["--fifo-dir", str(tmp_path), stand.image, unique, "no-such-command"]
    result = stand.sctl.refused("run", *words, says="no-such-command")
    assert result.err.startswith("sctl: ")
    assert result.err.count("\n") == 1
    assert nothing_left(stand, unique)
    assert list(tmp_path.iterdir()) == []
    assert stand.sctl(*stand.run(unique, "echo", "again")).out == "again\n"


def test_a_taken_id(stand: Stand, unique: str) -> None:
    stand.sctl("containers", "create", stand.image, unique, "true")
    result = stand.sctl.refused("run", "--rm", stand.image, unique, "true")
    assert result.err == f'sctl: container "{unique}": already exists\n'
    assert unique in stand.sctl("containers", "ls", "-q").out.split()


def test_a_snapshot_in_the_way(stand: Stand, unique: str) -> None:
    stand.sctl("snapshots", "prepare", unique)
    result = stand.sctl.refused("run", stand.image, unique, "true")
    assert f'snapshot "{unique}": already exists, without a container' in result.err


def test_an_unknown_image(stand: Stand, unique: str) -> None:
    result = stand.sctl.refused("run", "no/such:image", unique, "true")
    assert result.err.startswith('sctl: image "no/such:image": not found in namespace ')


def test_an_unknown_user_leaves_nothing(stand: Stand, unique: str) -> None:
    stand.sctl.refused(
        "run",
        "--user",
        "nobody-knows",
        stand.image,
        unique,
        "id",
        says="not in the image's /etc/passwd",
    )
    assert nothing_left(stand, unique)


def test_flags_reach_the_process(stand: Stand, unique: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)
    script = (
        'echo "$A-$B"; pwd; hostname; id -u; id -g; cat /host/file; echo;'
        " touch /x 2>/dev/null || echo read-only; touch /host/x 2>/dev/null || echo ro"
    )
    mount = f"type=bind,src={tmp_path},dst=/host,options=rbind:ro"
    result = stand.sctl(
        "run", "--rm", "--env", "A=1", "--env", "B=2", "--cwd", "/tmp", "--hostname", "hostess",
        "--user", "7:8", "--read-only", "--mount", mount,
        stand.image, unique, "sh", "-c", script,
    )  # fmt: skip
    assert result.out.split("\n") == [
        "1-2", "/tmp", "hostess", "7", "8", "from the host", "read-only", "ro", "",
    ]  # fmt: skip


def test_limits_reach_the_cgroup(stand: Stand, unique: str) -> None:
    stand.sctl(
        "run", "-d", "--null-io", "--memory-limit", "32M", stand.image, unique, "sleep", "600"
    )
    pid = stand.sctl("tasks", "ls").rows()[0][1]
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    values = set()
    for line in groups:
        _, controllers, path = line.split(":", 2)
        for file in (f"/sys/fs/cgroup/{controllers}{path}/memory.limit_in_bytes",
                     f"/sys/fs/cgroup{path}/memory.max"):  # fmt: skip
            if os.path.exists(file):
                values.add(Path(file).read_text().strip())
    assert str(32 << 20) in values


def test_detached_and_attached_again(stand: Stand, unique: str, tmp_path: Path) -> None:
    script = "read line; echo got $line; exit 3"
    stand.sctl("run", "-d", "--fifo-dir", str(tmp_path), stand.image, unique, "sh", "-c", script)
    assert stand.sctl("tasks", "ls").rows()[0][2] == "RUNNING"
    result = stand.sctl("tasks", "attach", unique, input=b"hello\n", code=3)
    assert result.out == "got hello\n"
    assert stand.sctl("tasks", "ls").rows() == []
    assert list(tmp_path.iterdir()) == []
    stand.sctl("containers", "rm", unique)
    assert nothing_left(stand, unique)


def test_a_container_can_be_started_again(stand: Stand, unique: str) -> None:
    stand.sctl("containers", "create", stand.image, unique, "sh", "-c", "echo once; exit 4")
    for _ in range(2):
        assert stand.sctl("tasks", "start", unique, code=4).out == "once\n"


def test_pid_file(stand: Stand, unique: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    stand.sctl(
        "run", "-d", "--null-io", "--pid-file", str(file), stand.image, unique, "sleep", "600"
    )
    assert stand.sctl("tasks", "ls").rows()[0][1] == file.read_text()


def test_logs(stand: Stand, unique: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    script = "for i in 1 2 3; do echo line $i; done; echo bad >&2"
    stand.sctl("run", "--log-uri", str(file), stand.image, unique, "sh", "-c", script)
    assert sorted(stand.sctl("logs", unique).out.splitlines()) == [
        "bad",
        "line 1",
        "line 2",
        "line 3",
    ]
    stand.sctl("containers", "rm", unique)


def test_logs_follow_until_the_end(stand: Stand, unique: str, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done"
    stand.sctl(
        "run", "-d", "--log-uri", f"file://{tmp_path}/log", stand.image, unique, "sh", "-c", script
    )
    assert stand.sctl("logs", "--follow", unique).out == "1\n2\n3\n4\n5\n"
    assert stand.sctl("logs", "--tail", "2", unique).out == "4\n5\n"


@pytest.mark.only("supervisord", reason="the scheme is our own")
def test_logs_of_kubelet_show_what_was_said(stand: Stand, unique: str, tmp_path: Path) -> None:
    uri = f"cri://{tmp_path}/0.log?max-line=4"
    script = "echo 0123456789; echo bad >&2; echo -n open"
    stand.sctl("run", "--log-uri", uri, stand.image, unique, "sh", "-c", script)
    shown = stand.sctl("logs", unique)
    assert (shown.out, shown.err) == ("0123456789\nopen", "bad\n")
    raw = stand.sctl("logs", "--raw", unique).out
    assert raw == (tmp_path / "0.log").read_text()
    assert " stdout P 0123\n" in raw
    stand.sctl("containers", "rm", unique)


def test_signals_are_passed_on(stand: Stand, unique: str) -> None:
    script = 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.05; done'
    with stand.sctl.background(*stand.run(unique, "sh", "-c", script)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"caught\n"
        assert process.wait(10) == 9
    assert nothing_left(stand, unique)


def test_a_reader_that_leaves_ends_the_run(stand: Stand, unique: str) -> None:
    with stand.sctl.background(*stand.run(unique, "yes")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(15) == 128 + signal.SIGPIPE
        process.stdout = None
    assert nothing_left(stand, unique)


def test_exec(stand: Stand, unique: str, tmp_path: Path) -> None:
    stand.sctl("run", "-d", "--null-io", "--env", "A=1", stand.image, unique, "sleep", "600")
    words = ["tasks", "exec", "--fifo-dir", str(tmp_path)]
    result = stand.sctl(*words, "--env", "B=2", "--cwd", "/tmp", unique, "sh", "-c",
                        'echo "$A$B"; pwd; exit 5', code=5)  # fmt: skip
    assert result.out == "12\n/tmp\n"
    assert stand.sctl(*words, unique, "cat", input=b"through").out == "through"
    stand.sctl(*words, "-d", "--exec-id", "e1", unique, "sleep", "600")
    assert len(stand.sctl("tasks", "ps", unique).rows()) == 2
    stand.sctl("tasks", "kill", "-s", "KILL", "--exec-id", "e1", unique)
    until(lambda: len(stand.sctl("tasks", "ps", unique).rows()) == 1)
    stand.sctl("tasks", "rm", "--exec-id", "e1", unique)
    refused = stand.sctl.refused("tasks", "exec", unique, "no-such", says="no-such")
    assert refused.err.startswith("sctl: ")
    assert stand.sctl(*words, unique, "echo", "still here").out == "still here\n"
    assert list(tmp_path.iterdir()) == []


def test_the_life_of_a_task(stand: Stand, unique: str) -> None:
    stand.sctl("run", "-d", "--null-io", stand.image, unique, "sleep", "600")
    refused = stand.sctl.refused("containers", "rm", unique)
    assert f'container "{unique}" is running' in refused.err
    stand.sctl("tasks", "pause", unique)
    assert stand.sctl("tasks", "ls").rows()[0][2] == "PAUSED"
    stand.sctl("tasks", "resume", unique)
    assert stand.sctl("tasks", "ls").rows()[0][2] == "RUNNING"
    metrics = dict(
        row[:2] for row in stand.sctl("tasks", "metrics", unique).rows() if len(row) == 2
    )
    assert int(metrics["pids.current"]) >= 1
    assert isinstance(
        json.loads(stand.sctl("tasks", "metrics", "--format", "json", unique).out), dict
    )
    top = json.loads(stand.sctl("top", "--interval", "200ms", "--format", "json", unique).out)
    assert [record["id"] for record in top] == [unique]
    stand.sctl("tasks", "kill", "-s", "KILL", unique)
    assert stand.sctl("tasks", "wait", unique).out == "137\n"
    stand.sctl("tasks", "rm", unique)
    stand.sctl("containers", "rm", unique)
    assert nothing_left(stand, unique)


def test_force_ends_what_runs(stand: Stand, unique: str) -> None:
    stand.sctl("run", "-d", "--null-io", stand.image, unique, "sleep", "600")
    stand.sctl.refused("tasks", "rm", unique)
    stand.sctl("tasks", "rm", "--force", unique)
    stand.sctl("containers", "rm", unique)
    assert nothing_left(stand, unique)


def test_a_folder_as_root_filesystem(stand: Stand, unique: str, tmp_path: Path) -> None:
    root = str(bare_root(tmp_path / "root"))
    words = ["--rootfs", root, unique, "/bin/busybox", "echo", "bare"]
    assert stand.sctl("run", "--rm", *words).out == "bare\n"


def test_a_config_file(stand: Stand, unique: str, tmp_path: Path) -> None:
    root = bare_root(tmp_path / "root")
    words = ["--rootfs", str(root), unique, "/bin/busybox", "echo", "from a file"]
    stand.sctl("containers", "create", *words)
    spec = stand.sctl("containers", "info", "--spec", unique).out
    stand.sctl("containers", "rm", unique)
    file = tmp_path / "config.json"
    file.write_text(spec)
    assert stand.sctl("run", "--rm", "--config", str(file), unique).out == "from a file\n"


@pytest.mark.skipif(os.path.exists("/usr/bin/crun") is False, reason="crun is not installed")
def test_another_runtime_binary(stand: Stand, unique: str) -> None:
    result = stand.sctl(
        "containers", "create", "--runc-binary", "runc", stand.image, unique, "true"
    )
    info = json.loads(stand.sctl("containers", "info", unique).out)
    assert info["Runtime"]["Options"] == {"binary_name": "runc"}
    assert result.out == ""
    assert stand.sctl("tasks", "start", unique).code == 0


def test_container_records(stand: Stand, unique: str) -> None:
    stand.sctl(
        "containers", "create", "--label", "a=1", "--label", "b=2", stand.image, unique, "true"
    )
    assert "a=1" in stand.sctl("containers", "label", unique, "b=", "c=3").out
    found = json.loads(stand.sctl("containers", "ls", "--format", "json", "labels.c==3").out)
    assert [record["id"] for record in found] == [unique]
    assert found[0]["labels"]["io.containerd.image.config.stop-signal"] == "SIGTERM"
    assert "b" not in found[0]["labels"]
    assert stand.sctl("containers", "ls", "-q", "labels.c==4").out == ""


def test_on_a_terminal(stand: Stand, unique: str) -> None:
    with stand.sctl.terminal("run", "--rm", "-t", stand.image, unique, "sh") as terminal:
        terminal.send("tty; echo up=$((1)); sleep 600\n")
        assert "/dev/pts/" in terminal.expect("up=1\n")
        until(lambda: len(stand.sctl("tasks", "ps", unique).rows()) == 2)  # there is the sleep
        terminal.send("\x03")  # which throws away what was typed after it, until it is read
        until(lambda: len(stand.sctl("tasks", "ps", unique).rows()) == 1)
        terminal.send("echo code=$?\n")
        terminal.expect("code=130\n")
        terminal.send("exit 9\n")
        assert terminal.wait() == 9
    assert nothing_left(stand, unique)


def test_exec_on_a_terminal(stand: Stand, unique: str) -> None:
    stand.sctl("run", "-d", "--null-io", stand.image, unique, "sleep", "600")
    with stand.sctl.terminal("tasks", "exec", "-t", unique, "sh") as terminal:
        terminal.send("echo in=$((1)); tty\n")
        terminal.expect("in=1\n")
        terminal.expect("/dev/pts/")
        terminal.send("exit 5\n")
        assert terminal.wait() == 5


@pytest.mark.only("supervisord", reason="sctl waits for a daemon that comes back")
def test_a_run_outlives_its_daemon(own_daemon: Daemon, image_tar: Path, unique: str) -> None:
    sctl = Sctl(own_daemon.address, "default")
    name = sctl("images", "import", str(image_tar)).out.split()[0]
    script = "echo before; sleep 2; echo after; exit 6"
    with sctl.background("run", "--rm", name, unique, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
        own_daemon.restart()
        assert process.stdout.readline() == b"after\n"
        assert process.wait(20) == 6
    assert sctl("containers", "ls", "-q").out == ""


def test_the_spec_is_the_one_of_ctr(stand: Stand, unique: str) -> None:
    """Flag by flag, but for what newer clients of containerd mask in addition."""
    for number, flags in enumerate(
        (
            [],
            ["--net-host", "--read-only", "--privileged", "--env", "A=b", "--cwd", "/tmp", "-t"],
            [
                "--mount",
                "type=bind,src=/tmp,dst=/host,options=rbind:ro",
                "--memory-limit",
                "9999999",
            ],
            ["--label", "a=b", "--annotation", "q=r", "--with-ns", "network:/proc/1/ns/net"],
            ["--cap-drop", "CAP_KILL", "--cap-add", "CAP_SYS_ADMIN", "--allow-new-privs"],
            ["--rootfs-propagation", "shared", "--device", "/dev/null", "--cpu-quota", "1000"],
        )
    ):
        specs = []
        for client in (stand.shop.ctr, stand.sctl):
            id = f"{unique}-{number}"
            client("c", "create", *flags, stand.image, id, "echo", "hi")
            found = json.loads(stand.shop.ctr("c", "info", id).out)
            client("c", "rm", id)
            spec = found["Spec"]
            spec.pop("ociVersion")
            spec["linux"]["maskedPaths"] = [
                path
                for path in spec["linux"].get("maskedPaths", [])
                if path != "/sys/devices/virtual/powercap"
            ]
            specs.append((spec, found["Labels"], found["Runtime"]["Name"], found["Image"]))
        assert specs[0] == specs[1], flags


def test_ctr_flags_of_run_are_known(stand: Stand) -> None:
    """Every flag of ``ctr run``, but for those whose absence is deliberate."""
    missing = {
        "--cni", "--gpus", "--seccomp", "--apparmor-default-profile", "--rdt-class",
        "--runtime-config-path",
    }  # fmt: skip
    shown = stand.shop.ctr("run", "--help").out
    flags = {
        word.rstrip(",")
        for line in shown.splitlines()
        for word in line.split()[:1]
        if word.startswith("--")
    }
    known = subprocess.run(
        stand.sctl.command("run", "--help"), capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert flags - set(known.replace(",", " ").split()) == missing
