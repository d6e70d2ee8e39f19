"""Shims and daemons of different makers: Debian's runc shim and ours, each under both daemons.

On containerd the one is the reference, and the other what this project promises to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Daemon, alive, parent_of, remove_cgroups, running
from tests.conformance.fixtures import IMAGE
from tests.conformance.wire import Wire

DEBIAN = "/usr/bin/containerd-shim-runc-v2"
OURS = "io.containerd.supervisord.v2"
PROGRAM = "containerd-shim-supervisord-v2"

needs_debians = pytest.mark.skipif(not os.path.exists(DEBIAN), reason=f"needs {DEBIAN}")
SHIMS = [pytest.param(DEBIAN, marks=needs_debians, id="debian"), pytest.param(OURS, id="ours")]


class Place:
    """A namespace of a daemon that finds our shim in its PATH."""

    def __init__(self, daemon: Daemon, image_tar: Path, namespace: str) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.ctr = Ctr(daemon.address, namespace)
        self.wire = Wire(daemon.address, namespace, ours=daemon.ours)
        self.ctr("i", "import", str(image_tar))

    def run(self, shim: str, id: str, *arguments: str, more: tuple[str, ...] = ()) -> int:
        """Runs it in the background and answers its pid."""
        self.ctr("run", "-d", "--runtime", shim, *more, IMAGE, id, *arguments)
        return int(self.wire.tasks_by_id()[id].pid)

    def remove(self, id: str) -> None:
        """Kills and deletes task and container."""
        self.wire.kill(id, all=True)
        self.wire.wait(id)
        self.wire.delete_task(id)
        self.ctr("c", "rm", id)

    def close(self) -> None:
        """The daemon is closed after it, with all that it has."""
        sweep.tasks(self.wire)
        self.wire.close()
        remove_cgroups(f"/{self.namespace}")


@pytest.fixture(scope="module", autouse=True)
def in_the_path() -> Iterator[None]:
    """Daemons that are started here find our shim."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(Path(sys.executable).parent)
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        assert shutil.which(PROGRAM), f"{PROGRAM} is not installed beside {sys.executable}"
        yield


@contextmanager
def opened(name: str, image_tar: Path) -> Iterator[Place]:
    with running(name) as daemon:
        place = Place(daemon, image_tar, f"sdshim-{daemon.token[:8]}")
        try:
            yield place
        finally:
            place.close()


@pytest.fixture(scope="module")
def places(
    daemon: Daemon, lasting: Callable[[], AbstractContextManager[None]], image_tar: Path
) -> Iterator[Place]:
    with ExitStack() as stack:
        with lasting():
            place = stack.enter_context(opened(daemon.name, image_tar))
            place.ctr("run", "--rm", IMAGE, "first", "true")
            place.wire.tasks_by_id()
        yield place


@pytest.fixture
def own_place(daemon: Daemon, image_tar: Path) -> Iterator[Place]:
    """With a daemon for this test alone, to be restarted."""
    with opened(daemon.name, image_tar) as place:
        yield place


@pytest.fixture
def place(places: Place) -> Iterator[Place]:
    before = set(places.daemon.processes())
    yield places
    sweep.tasks(places.wire)
    sweep.containers(places.wire)
    until(lambda: not set(places.daemon.processes()) - before, "processes are left")


def until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def is_ours(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("supervisord")


@pytest.mark.parametrize("shim", SHIMS)
def test_output_exit_code_and_input(place: Place, shim: str, unique: str) -> None:
    arguments = ("run", "--rm", "--runtime", shim, IMAGE, unique)
    script = "head -n 1; echo err >&2; exit 42"
    done = place.ctr(*arguments, "sh", "-c", script, input=b"words\n", code=42)
    assert (done.out, done.err) == ("words\n", "err\n")
    done = place.ctr(*arguments, "no-such-command", code=1)
    assert "no-such-command" in done.err
    assert place.ctr("t", "ls").rows() == []


@pytest.mark.parametrize("shim", SHIMS)
def test_a_whole_life(place: Place, shim: str, unique: str) -> None:
    with place.wire.record() as recorder:
        pid = place.run(shim, unique, "sleep", "600")
        assert is_ours(parent_of(pid)) == (shim == OURS)
        exec = ("t", "exec", "--exec-id", "one", unique)
        assert place.ctr(*exec, "sh", "-c", "echo in; exit 3", code=3).out == "in\n"
        assert place.ctr("t", "ps", unique).rows()[0][0] == str(pid)
        assert "memory" in place.ctr("t", "metrics", unique).out
        place.ctr("t", "pause", unique)
        assert place.ctr("t", "ls").rows() == [[unique, str(pid), "PAUSED"]]
        place.ctr("t", "resume", unique)
        place.ctr("t", "kill", "-s", "SIGTERM", unique)
        place.ctr("t", "kill", "-s", "SIGKILL", unique)
        assert place.wire.wait(unique) == 137
        assert place.wire.delete_task(unique) == 137
        recorder.expect("/tasks/delete")
        topics = [topic for topic in recorder.topics() if topic.startswith("/tasks/")]
        assert topics == [
            *("/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"),
            *("/tasks/exit", "/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"),
        ]


@pytest.mark.parametrize("shim", SHIMS)
def test_a_terminal(place: Place, shim: str, unique: str) -> None:
    arguments = ("run", "--rm", "-t", "--runtime", shim, IMAGE, unique, "sh")
    with place.ctr.terminal(*arguments) as terminal:
        terminal.expect("#")
        terminal.send("echo $((6*7))\n")
        terminal.expect("\n42\n")
        terminal.send("exit 5\n")
        assert terminal.wait() == 5


@pytest.mark.parametrize("shim", SHIMS)
def test_a_killed_shim_is_cleaned_up_after(place: Place, shim: str, unique: str) -> None:
    pid = place.run(shim, unique, "sleep", "600")
    with place.wire.record() as recorder:
        os.kill(parent_of(pid), signal.SIGKILL)
        (event,) = recorder.expect("/tasks/exit")
        assert (event.container_id, event.pid, event.exit_status) == (unique, pid, 137)
        recorder.expect("/tasks/delete")
    until(lambda: not alive(pid), "the container outlives its shim")
    until(lambda: unique not in place.wire.tasks_by_id(), "the task stays")
    with open("/proc/self/mountinfo") as mounts:
        assert f"/{unique}/" not in mounts.read()
    place.ctr("t", "start", "-d", unique)  # the same id works again
    place.remove(unique)


@pytest.mark.parametrize("shim", SHIMS)
def test_containers_outlive_the_daemon(own_place: Place, shim: str, unique: str) -> None:
    place = own_place
    names = [f"{unique}-{number}" for number in range(3)]
    pids = {name: place.run(shim, name, "sleep", "600") for name in names}
    ends = place.run(shim, f"{unique}-end", "sh", "-c", "sleep 1; exit 9")
    place.daemon.kill()
    until(lambda: not alive(ends), "it does not end")
    place.daemon.start()
    found = place.wire.tasks_by_id()
    assert {name: found[name].pid for name in names} == pids
    assert place.wire.wait(f"{unique}-end") == 9
    for name in names:
        arguments = ("t", "exec", "--exec-id", "one", name, "echo", "still")
        assert place.ctr(*arguments).out == "still\n"
        place.remove(name)
    assert place.wire.delete_task(f"{unique}-end") == 9


@pytest.mark.parametrize("shim", [*SHIMS, pytest.param("io.containerd.runc.v2", id="default")])
@pytest.mark.parametrize(
    "annotation", ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"]
)
def test_a_pod_shares_a_shim(place: Place, shim: str, annotation: str, unique: str) -> None:
    names = [f"{unique}-{number}" for number in range(3)]
    more = ("--annotation", f"{annotation}={unique}")
    shims = {parent_of(place.run(shim, name, "sleep", "600", more=more)) for name in names}
    (pid,) = shims
    other = place.run(shim, f"{unique}-other", "sleep", "600")
    assert parent_of(other) != pid
    place.remove(names[0])
    assert alive(pid)
    again = place.run(shim, f"{unique}-again", "sleep", "600", more=more)
    assert parent_of(again) == pid
    for name in (*names[1:], f"{unique}-again"):
        assert alive(pid)
        assert place.ctr("t", "exec", "--exec-id", "one", name, "echo", "x").out == "x\n"
        place.remove(name)
    until(lambda: not alive(pid), "the shim outlives its pod")
    place.remove(f"{unique}-other")


@pytest.mark.parametrize("shim", SHIMS)
def test_a_pod_outlives_the_daemon(own_place: Place, shim: str, unique: str) -> None:
    place = own_place
    names = [f"{unique}-{number}" for number in range(2)]
    more = ("--annotation", f"io.containerd.runc.v2.group={unique}")
    for name in names:
        pid = parent_of(place.run(shim, name, "sleep", "600", more=more))
    place.daemon.restart()
    names.append(f"{unique}-later")
    assert parent_of(place.run(shim, names[-1], "sleep", "600", more=more)) == pid
    for name in names:
        assert alive(pid)
        place.remove(name)
    until(lambda: not alive(pid), "the shim outlives its pod")


@pytest.mark.parametrize("shim", SHIMS)
def test_the_death_of_a_pods_shim_is_everyones(place: Place, shim: str, unique: str) -> None:
    names = [f"{unique}-{number}" for number in range(3)]
    more = ("--annotation", f"io.containerd.runc.v2.group={unique}")
    pids = [place.run(shim, name, "sleep", "600", more=more) for name in names]
    with place.wire.record() as recorder:
        os.kill(parent_of(pids[0]), signal.SIGKILL)
        events = recorder.expect("/tasks/exit", count=3)
        assert {(event.container_id, event.exit_status) for event in events} == {
            (name, 137) for name in names
        }
    until(lambda: not any(map(alive, pids)), "a container outlives its shim")
    until(lambda: not place.wire.tasks_by_id(), "a task stays")


@needs_debians
def test_the_name_of_the_default_can_be_given_away(image_tar: Path, unique: str) -> None:
    with running("supervisord") as daemon:
        daemon.stop()
        config = daemon.base / "config.toml"
        command = daemon.command()
        table = '[plugins."io.containerd.runtime.v2.task".runtimes]'
        config.write_text(f'{config.read_text()}{table}\n"io.containerd.runc.v2" = "{DEBIAN}"\n')
        daemon.command = lambda: command  # type: ignore[method-assign]
        daemon.start()
        place = Place(daemon, image_tar, f"sdshim-{unique}")
        pid = place.run("io.containerd.runc.v2", unique, "sleep", "600")
        assert not is_ours(parent_of(pid))
        place.close()


def test_a_shim_publishes_by_the_daemons_program(place: Place, unique: str, tmp_path: Path) -> None:
    """The older way: a shim runs the program that its ``-publish-binary`` names."""
    told = tmp_path / "told"
    shim = tmp_path / "containerd-shim-publishes-v1"
    shim.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\n'
        f'[ "$9" = start ] && printf "\\n\\001a\\022\\001b" | '
        f'"$6" --address "$4" publish --namespace "$2" --topic /tests/told\nexit 1\n'
    )
    shim.chmod(0o755)
    with place.wire.record() as recorder:
        place.ctr.refused("run", "-d", "--runtime", str(shim), IMAGE, unique, "true")
        deadline = time.monotonic() + 20
        while "/tests/told" not in recorder.topics():
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.02)
