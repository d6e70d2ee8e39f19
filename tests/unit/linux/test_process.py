"""Process facts on real processes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.linux import fifo, process


def test_start_time_tells_processes_apart() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = process.start_time(child.pid)
    assert started is not None
    assert process.alive(child.pid, started)
    assert not process.alive(child.pid, started - 1)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.start_time(child.pid) is None, "a zombie is not alive"
    child.wait()
    assert process.start_time(child.pid) is None
    assert not process.alive(0, 0)


def test_a_name_with_brackets_does_not_confuse(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    after = " ".join(["S"] + [str(n) for n in range(4, 30)])
    (tmp_path / "7" / "stat").write_text(f"7 (a) b (x) {after}\n")
    assert process.start_time(7, str(tmp_path)) == 22


def test_pidfd() -> None:
    child = subprocess.Popen(["sleep", "60"])
    fd = process.pidfd_open(child.pid)
    try:
        assert not select.select([fd], [], [], 0)[0]
        process.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], 5)[0]
        assert child.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            process.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


CHILD = """
import os, sys
from supervisord.linux import process
process.set_name("shim:web")
process.set_subreaper()
assert open("/proc/self/comm").read() == "shim:web\\n"
if os.fork() == 0:
    pid = os.fork()
    if pid == 0:
        os.read(0, 1)
        os._exit(7)
    os._exit(0)
os.wait()
os.write(1, b"x")
pid, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 7
fds = [os.open("/dev/null", 0) for _ in range(3)]
process.close_range(fds[0], fds[1])
for fd in fds[:2]:
    try:
        os.fstat(fd)
    except OSError:
        pass
    else:
        sys.exit("still open")
os.set_inheritable(fds[2], True)
process.close_range(fds[2], cloexec=True)
assert not os.get_inheritable(fds[2])
"""


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_status_of_a_process(script: str, status: int) -> None:
    """While it is a zombie, and after it has been reaped where the kernel remembers."""
    child = subprocess.Popen(["sh", "-c", f"read line; {script}"], stdin=subprocess.PIPE)
    pidfd = process.pidfd_open(child.pid)
    try:
        assert process.exit_status(pidfd, child.pid) is None  # it runs
        assert child.stdin is not None
        child.stdin.close()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(10_000)
        assert process.exit_status(pidfd, child.pid) == status
        child.wait()
        version = tuple(int(part) for part in os.uname().release.split(".")[:2])
        expected = status if version >= (6, 15) else None
        assert process.exit_status(pidfd, child.pid) == expected
    finally:
        os.close(pidfd)


def test_subreaper_name_and_close_range() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin and child.stdout
    assert child.stdout.read(1) == b"x"
    child.stdin.close()
    assert child.wait(10) == 0
    child.stdout.close()


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not process.sd_notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert process.sd_notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_boot_id() -> None:
    assert len(process.boot_id()) == 36


def test_fifo(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    fifo.make(path)
    fifo.make(path)
    assert fifo.is_fifo(path) and not fifo.is_fifo(str(tmp_path))
    reader, writer = fifo.open_read(path), fifo.open_write(path)
    try:
        assert os.write(writer, b"x") == 1
        assert os.read(reader, 9) == b"x"
        assert fifo.set_size(writer) >= 4096
    finally:
        os.close(reader)
        os.close(writer)
    (tmp_path / "plain").touch()
    with pytest.raises(InvalidArgument, match="no fifo"):
        fifo.make(str(tmp_path / "plain"))
    with pytest.raises(NotFound):
        fifo.open_read(str(tmp_path / "none"))
