"""The leak check sees each kind of thing that it promises to see."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import leaks


@contextmanager
def noticed(room: leaks.Room, word: str) -> Iterator[None]:
    """What the block makes is reported as left behind, with ``word`` in the report."""
    before = leaks.take(room)
    yield
    lines = leaks.left_behind(room, before, patience=0.1)
    assert [line for line in lines if word in line], lines


def test_nothing_is_nothing(room: leaks.Room) -> None:
    before = leaks.take(room)
    assert leaks.left_behind(room, before, patience=0) == []


def test_a_descriptor(room: leaks.Room, tmp_path: Path) -> None:
    with noticed(room, "descriptor"):
        fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)


def test_a_thread(room: leaks.Room) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="lingering")
    with noticed(room, "lingering"):
        thread.start()
    end.set()
    thread.join()


def test_a_child_even_a_dead_one(room: leaks.Room) -> None:
    with noticed(room, "process"):
        child = subprocess.Popen(["/bin/true"], env={})
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.wait()


def test_a_process_that_left_the_family(room: leaks.Room) -> None:
    script = "import os, time; print(os.fork() or time.sleep(60), flush=True)"
    before = leaks.take(room)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.stdout.close()
    parent.wait()
    try:
        lines = leaks.left_behind(room, before, patience=0.1)
        assert [line for line in lines if f"process {orphan} " in line], lines
    finally:
        os.kill(orphan, 9)


def test_a_mount(room: leaks.Room, tmp_path: Path) -> None:
    with noticed(room, str(tmp_path)):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True)
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def machine(room: leaks.Room) -> leaks.Room:
    """What the whole run is compared in: all of the machine."""
    return leaks.Room(room.mark, (), alone=True, inside=False)


def test_a_file(machine: leaks.Room) -> None:
    with noticed(machine, "file /tmp/sv-left-"):
        folder = tempfile.mkdtemp(prefix="sv-left-", dir="/tmp")
    os.rmdir(folder)


def test_a_control_group(machine: leaks.Room) -> None:
    hierarchies = Path("/sys/fs/cgroup")
    root = hierarchies if (hierarchies / "cgroup.procs").exists() else hierarchies / "pids"
    group = root / f"sdleft-{os.getpid()}"
    with noticed(machine, f"cgroup {group}"):
        group.mkdir()
    group.rmdir()


def test_what_lasts_is_accepted(room: leaks.Room, tmp_path: Path) -> None:
    before = leaks.take(room)
    with leaks.lasting(room):
        fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert leaks.left_behind(room, before, patience=0) == []
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("body", "report"),
    [
        ("import asyncio\nasync def test_it():\n    asyncio.get_running_loop()"
         ".create_task(asyncio.sleep(60), name='forgotten')\n", "asyncio task"),
        ("import os\ndef test_it():\n    os.open('/', os.O_RDONLY)\n", "descriptor"),
        ("import warnings\ndef test_it():\n    warnings.warn('old')\n", "UserWarning: old"),
    ],
)  # fmt: skip
def test_it_fails_the_test(body: str, report: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(body)
    root = Path(leaks.__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest"]
    command += ["-p", "no:cacheprovider", "-c", str(root / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")]
    ran = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout
    assert report in ran.stdout
