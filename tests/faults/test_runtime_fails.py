"""An OCI runtime that fails at each of its verbs: told, nothing left, and the same again works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.v1.types import task_pb2
from tests.conformance.daemons import Daemon
from tests.conformance.fixtures import Shop
from tests.conformance.wire import Wire

from .fakes import FakeRuntime, Step, fail
from .residue import Residue

WORDS = "the moon is in the wrong house"
RESOURCES = AnyMessage(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
    value=json.dumps({"memory": {"limit": 64 << 20}}).encode(),
)


class Stage:
    """A container whose runtime is a fake one, and the requests that make it call each verb."""

    def __init__(self, shop: Shop, id: str, fake: FakeRuntime) -> None:
        self.wire: Wire = shop.wire
        self.id = id
        self.fake = fake
        self.execs = 0
        self.wire.container(id, ("sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.05; done"),
                            parent=shop.chain_id)  # fmt: skip

    def request(self, verb: str) -> Callable[[], object]:
        """What makes the daemon call the runtime's verb; the container is in the right state."""
        tasks, id = self.wire.tasks, self.id
        requests: dict[str, tuple[tuple[str, ...], Callable[[], object]]] = {
            "create": ((), self.create),
            "start": (("create",), lambda: self.wire.start(id)),
            "exec": (("create", "start"), self.exec),
            "pause": (
                ("create", "start"),
                lambda: tasks.Pause(pb.PauseTaskRequest(container_id=id)),
            ),
            "resume": (
                ("create", "start", "pause"),
                lambda: tasks.Resume(pb.ResumeTaskRequest(container_id=id)),
            ),
            "update": (
                ("create", "start"),
                lambda: tasks.Update(pb.UpdateTaskRequest(container_id=id, resources=RESOURCES)),
            ),
            "kill": (("create", "start"), lambda: self.wire.kill(id, 10, all=True)),
            "delete": (("create", "start"), lambda: self.wire.delete_task(id)),
        }
        before, request = requests[verb]
        for earlier in before:
            self.request_now(earlier)
        if verb == "delete":
            self.end()
        return request

    def request_now(self, verb: str) -> None:
        """One step on the way."""
        if verb == "create":
            self.create()
        elif verb == "start":
            self.wire.start(self.id)
        else:
            self.wire.tasks.Pause(pb.PauseTaskRequest(container_id=self.id))

    def create(self) -> int:
        return self.wire.create_task(self.id, options=self.fake.options())

    def exec(self) -> None:
        """A whole exec, failed ones deleted."""
        self.execs += 1
        name = f"e{self.execs}"
        self.wire.exec(self.id, name, ["sh", "-c", "exit 7"])
        try:
            self.wire.start(self.id, name)
            assert self.wire.wait(self.id, name) == 7
        finally:
            self.wire.tasks.DeleteProcess(
                pb.DeleteProcessRequest(container_id=self.id, exec_id=name)
            )

    def end(self) -> None:
        """Ends init, as the container does that by itself."""
        self.wire.kill(self.id, 9)
        assert self.wire.wait(self.id) == 137

    def remove(self) -> None:
        """Ends and deletes whatever there is of the task; the fake behaves."""
        found = self.wire.tasks_by_id().get(self.id)
        if found is not None:
            created = found.status == task_pb2.CREATED and self.wire.ours
            if found.status != task_pb2.STOPPED and not created:
                self.end()
            self.wire.delete_task(self.id)

    def live(self) -> None:
        """One whole life with the same id: nothing has remained that would be in its way."""
        self.create()
        self.wire.start(self.id)
        self.exec()
        self.end()
        assert self.wire.delete_task(self.id) == 137


_SAME = pytest.mark.only("supervisord", reason="to containerd a name makes no difference")


@pytest.fixture(params=["runc", pytest.param("fake", marks=_SAME)])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> FakeRuntime:
    """Under its real name some verbs are done without it; under another none is."""
    return FakeRuntime(tmp_path / "bin", request.param)


@pytest.fixture
def stage(shop: Shop, daemon: Daemon, unique: str, fake: FakeRuntime) -> Iterator[Stage]:
    """Checked for residue at the end, and after one more life."""
    residue = Residue(daemon, shop.namespace)
    made = Stage(shop, unique, fake)
    yield made
    fake.tell({})
    made.remove()
    residue.expect_none(unique)
    made.live()
    residue.expect_none(unique)


VERBS = ("create", "start", "exec", "pause", "resume", "update", "kill", "delete")
UNREAD = ("update", "kill")
"""Containerd does not look into the runtime's log for these."""


def attempt(stage: Stage, verb: str, request: Callable[[], object], step: Step) -> str:
    """Has the runtime misbehave at the verb; answers what the client is told, "" where the verb is
    done without the runtime."""
    before = len(stage.fake.calls(verb))
    stage.fake.tell({verb: [step]})
    told = ""
    try:
        request()
    except grpc.RpcError as error:
        told = str(error.details())
    stage.fake.tell({})
    called = len(stage.fake.calls(verb)) > before
    assert bool(told) == called, f"{told!r}, and the runtime was {'' if called else 'not '}called"
    return told


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_is_told_and_the_same_again_works(stage: Stage, verb: str) -> None:
    request = stage.request(verb)
    told = attempt(stage, verb, request, fail(WORDS))
    if told:
        if stage.wire.ours or verb not in UNREAD:
            assert WORDS in told
        request()


SILENT: dict[str, tuple[Step, str]] = {
    "says nothing": ({"end": "fail", "status": 3}, "exit status 3"),
    "has a damaged log": ({**fail(WORDS), "log": '\0\xff{"level":"error","msg":'}, "exit status 1"),
    "has a log of another kind": ({**fail(WORDS), "log": '[1]\n"x"\n\n{}\n'}, "exit status 1"),
    "crashes": ({"end": "crash", "signal": 11}, "killed by signal 11"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_without_words_is_told(stage: Stage, verb: str) -> None:
    request = stage.request(verb)
    for how, (step, words) in SILENT.items():
        told = attempt(stage, verb, request, step)
        if not told:
            return
        assert words in told or not stage.wire.ours, how
    request()


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_after_the_deed_leaves_nothing(stage: Stage, verb: str) -> None:
    """The runtime has done it, and then says that it has not."""
    told = attempt(stage, verb, stage.request(verb), {**fail(WORDS), "late": True})
    if stage.wire.ours or verb not in UNREAD:
        assert WORDS in told or not told


@pytest.mark.only("supervisord", reason="containerd leaves the container running")
@pytest.mark.parametrize("verb", ["create", "exec"])
def test_a_pid_that_is_none(stage: Stage, verb: str) -> None:
    request = stage.request(verb)
    for text in ("", "nonsense", "-1", "0", "1", "4194303", "9" * 30):
        told = attempt(stage, verb, request, {"end": "garble", "text": text})
        if not told:
            return
        assert "pid" in told
    request()


@pytest.mark.only("supervisord", reason="containerd leaves control groups")
@pytest.mark.parametrize("at", ["STATE", "STATE/state.json", "/sys/fs/cgroup/**/GROUP"])
def test_a_create_that_is_killed_halfway(stage: Stage, at: str) -> None:
    request = stage.request("create")
    path = at.replace("GROUP", f"{stage.wire.namespace}/{stage.id}")
    told = attempt(stage, "create", request, {"end": "cut", "path": path})
    assert "killed by signal 9" in told
    request()
