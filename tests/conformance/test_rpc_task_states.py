"""Every request of the task service in every state of a task: the code, and no harm done.

Debian's containerd answers UNKNOWN where a state forbids something; ours says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.v1.types import task_pb2

from .fixtures import Shop
from .wire import Wire

Code = grpc.StatusCode
Call = Callable[[Wire, str], object]
OK, GONE, LATER = "ok", "gone", "later"
"""Done; refused because the process has ended; refused in this state."""

STATES = ("created", "running", "paused", "stopped")
EXEC = "one"


def resources() -> AnyMessage:
    value = json.dumps({"pids": {"limit": 50}}).encode()
    return AnyMessage(type_url="types.containerd.io/opencontainers/LinuxResources", value=value)


CALLS: dict[str, Call] = {
    "start": lambda wire, id: wire.start(id),
    "pause": lambda wire, id: wire.tasks.Pause(pb.PauseTaskRequest(container_id=id)),
    "resume": lambda wire, id: wire.tasks.Resume(pb.ResumeTaskRequest(container_id=id)),
    "exec": lambda wire, id: wire.exec(id, "two", ["true"]),
    "start the exec": lambda wire, id: wire.start(id, EXEC),
    "kill the exec": lambda wire, id: wire.kill(id, 15, EXEC),
    "update": lambda wire, id: wire.tasks.Update(
        pb.UpdateTaskRequest(container_id=id, resources=resources(), annotations={"a": "b"})
    ),
    "resize": lambda wire, id: wire.tasks.ResizePty(
        pb.ResizePtyRequest(container_id=id, width=80, height=24)
    ),
    "resize the exec": lambda wire, id: wire.tasks.ResizePty(
        pb.ResizePtyRequest(container_id=id, exec_id=EXEC, width=80, height=24)
    ),
    "close stdin": lambda wire, id: wire.tasks.CloseIO(
        pb.CloseIORequest(container_id=id, stdin=True)
    ),
    "close nothing": lambda wire, id: wire.tasks.CloseIO(pb.CloseIORequest(container_id=id)),
    "pids": lambda wire, id: wire.tasks.ListPids(pb.ListPidsRequest(container_id=id)),
    "metrics": lambda wire, id: wire.tasks.Metrics(pb.MetricsRequest(filters=[f"id=={id}"])),
    "kill": lambda wire, id: wire.kill(id, 0),
    "delete": lambda wire, id: wire.delete_task(id),
    "delete the exec": lambda wire, id: wire.tasks.DeleteProcess(
        pb.DeleteProcessRequest(container_id=id, exec_id=EXEC)
    ),
}
REFUSALS: dict[str, dict[str, str]] = {
    "created": {"pause": LATER, "resume": LATER},
    "running": {"start": LATER, "resume": LATER, "delete": LATER, "kill the exec": LATER},
    "paused": {
        "start": LATER,
        "pause": LATER,
        "exec": LATER,
        "start the exec": LATER,
        "kill the exec": LATER,
        "delete": LATER,
    },
    "stopped": {
        "start": LATER,
        "pause": LATER,
        "resume": LATER,
        "exec": LATER,
        "start the exec": LATER,
        "kill the exec": LATER,
        "update": LATER,
        "kill": GONE,
    },
}
ENDS = ("start", "resume", "pause", "start the exec", "delete", "delete the exec")
"""Calls that change the state where they are not refused; tried where they are, and elsewhere."""


@pytest.mark.parametrize("state", STATES)
def test_in_each_state(shop: Shop, unique: str, state: str) -> None:
    wire = shop.wire
    wire.container(unique, parent=shop.chain_id)
    wire.create_task(unique)
    has_exec = state != "created"  # containerd 1.6 cannot delete a task whose exec never ran
    if has_exec:
        wire.start(unique)
        wire.exec(unique, EXEC, ["true"])
    if state == "paused":
        wire.tasks.Pause(pb.PauseTaskRequest(container_id=unique))
    if state == "stopped":
        wire.kill(unique)
        wire.wait(unique)
    before = wire.tasks.Get(pb.GetRequest(container_id=unique)).process
    refusals = REFUSALS[state]
    for name, call in CALLS.items():
        verdict = refusals.get(name, OK)
        if "the exec" in name and not has_exec:
            with wire.refused(Code.NOT_FOUND, EXEC):
                call(wire, unique)
        elif verdict is LATER:
            polite = name == "kill the exec"
            reference = Code.FAILED_PRECONDITION if polite else Code.UNKNOWN
            with wire.refused(Code.FAILED_PRECONDITION, reference=reference):
                call(wire, unique)
        elif verdict is GONE:
            with wire.refused(Code.NOT_FOUND, "process already finished"):
                call(wire, unique)
        elif name not in ENDS:
            call(wire, unique)
    after = wire.tasks.Get(pb.GetRequest(container_id=unique)).process
    assert (after.status, after.pid) == (before.status, before.pid)
    if has_exec:
        CALLS["delete the exec"](wire, unique)
    if state == "paused":
        CALLS["resume"](wire, unique)
    if state != "stopped":
        wire.kill(unique)
        wire.wait(unique)
    assert wire.delete_task(unique) == 137
    wire.delete_container(unique)


@pytest.mark.only("supervisord", reason="containerd's exec is lost when a pause has refused it")
def test_an_exec_that_a_pause_refused_starts_later(shop: Shop, unique: str) -> None:
    wire = shop.wire
    wire.run(unique, parent=shop.chain_id)
    wire.exec(unique, EXEC, ["sh", "-c", "exit 4"])
    wire.tasks.Pause(pb.PauseTaskRequest(container_id=unique))
    with wire.refused(Code.FAILED_PRECONDITION, "paused"):
        wire.start(unique, EXEC)
    process = wire.tasks.Get(pb.GetRequest(container_id=unique, exec_id=EXEC)).process
    assert process.status == task_pb2.PAUSED
    wire.tasks.Resume(pb.ResumeTaskRequest(container_id=unique))
    wire.start(unique, EXEC)
    assert wire.wait(unique, EXEC) == 4


def test_pids_name_their_execs(shop: Shop, unique: str) -> None:
    """Init and what nobody knows carry no details, an exec its id; one that has ended is gone."""
    wire = shop.wire
    pid = wire.run(unique, ["sh", "-c", "sleep 600 & exec sleep 600"], parent=shop.chain_id)
    wire.exec(unique, "short", ["true"])
    wire.start(unique, "short")
    wire.wait(unique, "short")
    wire.exec(unique, EXEC, ["sleep", "600"])
    other = wire.start(unique, EXEC)
    request = pb.ListPidsRequest(container_id=unique)
    deadline = time.monotonic() + 10
    while len(found := wire.tasks.ListPids(request).processes) != 3:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    details = {process.pid: process.info for process in found}
    assert details[other].type_url == "containerd.runc.v1.ProcessDetails"
    assert options_pb2.ProcessDetails.FromString(details[other].value).exec_id == EXEC
    assert [pid for pid, info in details.items() if info.type_url] == [other]
    assert pid in details


def test_metrics_filters(shop: Shop, unique: str) -> None:
    wire = shop.wire
    ids = [f"{unique}{letter}" for letter in "ab"]
    for id in ids:
        wire.run(id, parent=shop.chain_id)

    def found(*filters: str) -> list[str]:
        metrics = wire.tasks.Metrics(pb.MetricsRequest(filters=filters)).metrics
        return sorted(metric.id for metric in metrics if metric.id in ids)

    assert found() == ids
    assert found(f"id=={ids[0]}") == ids[:1]
    assert found(f"id=={ids[0]}", f"id=={ids[1]}") == ids
    assert found(f'id~="^{unique}"') == ids
    assert found(f"id!={ids[0]}") == ids[1:]
    assert found(f"id=={ids[0]},namespace=={shop.namespace}") == ids[:1]
    assert found(f"id=={ids[0]},namespace==other") == []
    assert found("runtime==any") == []
    with wire.refused(Code.INVALID_ARGUMENT, reference=Code.UNKNOWN):
        found("id==")
    scoped = wire.scoped("nobody-is-here")
    assert not scoped.tasks.Metrics(pb.MetricsRequest()).metrics
    scoped.close()
