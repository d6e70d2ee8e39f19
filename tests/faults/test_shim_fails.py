"""A shim of another maker that misbehaves at each of its verbs: told, nothing left, and the same
id works again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from tests.conformance import sweep
from tests.conformance.daemons import Daemon
from tests.conformance.fixtures import Shop
from tests.conformance.wire import Wire

from .fakes import FakeShim, Step
from .residue import Residue

pytestmark = pytest.mark.only("supervisord", reason="it is our side of the protocol that is tested")

WORDS = "the shim has lost its hammer"
RESOURCES = AnyMessage(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
    value=json.dumps({"memory": {"limit": 64 << 20}}).encode(),
)


class Stage:
    """A container of the fake shim."""

    def __init__(self, shop: Shop, id: str, fake: FakeShim) -> None:
        self.wire: Wire = shop.wire
        self.id = id
        self.fake = fake
        self.wire.container(id, parent=shop.chain_id)

    def create(self) -> object:
        return self.wire.create_task(self.id, runtime_path=str(self.fake.path))

    def run(self) -> None:
        self.create()
        self.wire.start(self.id)

    def live(self) -> None:
        """One whole life."""
        self.run()
        self.wire.exec(self.id, "e", ["sh", "-c", "exit 7"])
        self.wire.start(self.id, "e")
        assert self.wire.wait(self.id, "e") == 7
        self.remove()

    def remove(self) -> None:
        """Ends and deletes whatever there is of the task."""
        with sweep.absent_is_fine():
            self.wire.kill(self.id, 9)
            self.wire.wait(self.id)
        with sweep.absent_is_fine():
            self.wire.delete_task(self.id)

    def request(self, verb: str) -> Callable[[], object]:
        """What makes the daemon call a verb of the shim; the container is in the right state."""
        tasks, id = self.wire.tasks, self.id
        if verb in ("start", "delete", "Connect", "Create", "Shutdown"):
            return self.create
        self.create()
        if verb == "Start":
            return lambda: self.wire.start(id)
        self.wire.start(id)
        if verb == "Delete":
            self.wire.kill(id, 9)
            self.wire.wait(id)
        if verb == "Resume":
            tasks.Pause(pb.PauseTaskRequest(container_id=id))
        resize = pb.ResizePtyRequest(container_id=id, width=9, height=9)
        requests: dict[str, Callable[[], object]] = {
            "State": lambda: tasks.Get(pb.GetRequest(container_id=id)),
            "Exec": lambda: self.wire.exec(id, "e", ["true"]),
            "Kill": lambda: self.wire.kill(id, 15),
            "Pids": lambda: tasks.ListPids(pb.ListPidsRequest(container_id=id)),
            "Pause": lambda: tasks.Pause(pb.PauseTaskRequest(container_id=id)),
            "Resume": lambda: tasks.Resume(pb.ResumeTaskRequest(container_id=id)),
            "Update": lambda: tasks.Update(
                pb.UpdateTaskRequest(container_id=id, resources=RESOURCES)
            ),
            "CloseIO": lambda: tasks.CloseIO(pb.CloseIORequest(container_id=id, stdin=True)),
            "ResizePty": lambda: tasks.ResizePty(resize),
            "Delete": lambda: self.wire.delete_task(id),
        }
        return requests[verb]


@pytest.fixture
def stage(shop: Shop, daemon: Daemon, unique: str, tmp_path: Path) -> Iterator[Stage]:
    """Checked for residue at the end, and after one more life."""
    residue = Residue(daemon, shop.namespace)
    made = Stage(shop, unique, FakeShim(tmp_path / "bin"))
    yield made
    made.fake.tell({})
    made.remove()
    residue.expect_none(unique, seconds=30)
    made.live()
    residue.expect_none(unique, seconds=30)


def attempt(stage: Stage, verb: str, step: Step) -> str:
    """Has the shim misbehave at the verb; answers what the client is told."""
    request = stage.request(verb)
    stage.fake.tell({verb: [step]})
    told = ""
    try:
        request()
    except grpc.RpcError as error:
        told = str(error.details())
    assert stage.fake.calls(verb) == [f"{verb} {step['end']}"]
    stage.fake.tell({})
    return told


CREATING = ("Connect", "Create")
RUNNING = ("State", "Exec", "Kill", "Pids", "Pause", "Resume", "Update", "CloseIO", "ResizePty")
VERBS = (*CREATING, "Start", *RUNNING, "Delete")


@pytest.mark.parametrize("late", [False, True], ids=["refused", "done and denied"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_is_told(stage: Stage, verb: str, late: bool) -> None:
    assert WORDS in attempt(stage, verb, {"end": "fail", "message": WORDS, "late": late})


@pytest.mark.parametrize("end", ["part", "partial", "garble", "crash"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_answer_is_told(stage: Stage, verb: str, end: str) -> None:
    told = attempt(stage, verb, {"end": end})
    assert told or end != "garble"  # where the connection was lost it may be asked again


STARTS: dict[str, tuple[Step, str]] = {
    "fails": ({"end": "fail", "message": WORDS}, WORDS),
    "fails late": ({"end": "fail", "message": WORDS, "late": True}, WORDS),
    "crashes": ({"end": "crash"}, "signal 11"),
    "prints nothing": ({"end": "text", "text": ""}, "no address"),
    "prints nonsense": ({"end": "text", "text": "{nonsense"}, "{nonsense"),
    "prints another address": ({"end": "text", "text": "unix:///run/nobody/here"}, "nobody"),
    "speaks a protocol of tomorrow": (
        {"end": "text", "text": '{"version": 9, "address": "unix:///x", "protocol": "ttrpc"}'},
        "version (9)",
    ),
    "speaks another protocol": (
        {"end": "text", "text": '{"version": 3, "address": "unix:///x", "protocol": "carrier"}'},
        "carrier",
    ),
}


@pytest.mark.parametrize("how", STARTS)
def test_a_start_that_fails(stage: Stage, how: str) -> None:
    step, words = STARTS[how]
    assert words in attempt(stage, "start", step)


@pytest.mark.parametrize("end", ["fail", "crash", "text"])
def test_a_delete_that_fails(stage: Stage, end: str) -> None:
    """The program that cleans up after a dead shim does not, or prints what is no answer."""
    stage.run()
    step = {"end": end, "message": WORDS, "text": "\x0f\xff", "late": True}
    stage.fake.tell({"Kill": [{"end": "crash"}], "delete": [step]})
    with contextlib.suppress(grpc.RpcError):
        stage.wire.kill(stage.id)
    deadline = time.monotonic() + 30
    while stage.id in stage.wire.tasks_by_id():
        assert time.monotonic() < deadline, "the task stays"
        time.sleep(0.05)


def test_a_shim_that_does_not_end(stage: Stage) -> None:
    """It is asked to, and refuses: it is killed."""
    stage.run()
    stage.fake.tell({"Shutdown": [{"end": "fail", "message": WORDS}]})
    stage.remove()


def test_a_state_that_hangs_holds_up_nobody(stage: Stage) -> None:
    """It is unknown until it answers again."""
    stage.run()
    stage.fake.tell({"State": [{"end": "hang"}]})
    assert stage.id in stage.wire.tasks_by_id()
    stage.wire.kill(stage.id)
    assert stage.wire.wait(stage.id) == 137
