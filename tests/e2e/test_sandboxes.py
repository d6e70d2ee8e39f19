"""Sandboxes and streams of the whole daemon, by ``sctl`` and by the stubs.

Debian's containerd has neither service: what it would answer is taken from newer ones.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.services.introspection.v1 import introspection_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from protos.containerd.services.sandbox.v1 import sandbox_pb2_grpc
from protos.containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from protos.containerd.types import types_pb2
from tests.conformance import sweep
from tests.conformance.daemons import Daemon, parent_of, remove_cgroups
from tests.conformance.wire import RUNTIME, Wire
from tests.e2e.conftest import Sctl, Stand

pytestmark = pytest.mark.only("supervisord", "the reference has no such service")


@dataclass
class Sandboxes:
    """Both services of sandboxes in one namespace."""

    wire: Wire
    store: sandbox_pb2_grpc.StoreStub
    controller: sandbox_pb2_grpc.ControllerStub

    @classmethod
    def of(cls, wire: Wire) -> Sandboxes:
        return cls(
            wire,
            sandbox_pb2_grpc.StoreStub(wire.channel),
            sandbox_pb2_grpc.ControllerStub(wire.channel),
        )

    def record(self, id: str) -> types_pb2.Sandbox:
        sandbox = types_pb2.Sandbox(sandbox_id=id, sandboxer="shim")
        sandbox.runtime.name = RUNTIME
        created: types_pb2.Sandbox = self.store.Create(
            pb.StoreCreateRequest(sandbox=sandbox)
        ).sandbox
        return created

    def run(self, id: str) -> int:
        """Record, instance and start; answers the pid."""
        record = self.record(id)
        self.controller.Create(
            pb.ControllerCreateRequest(sandbox_id=id, sandboxer="shim", sandbox=record)
        )
        request = pb.ControllerStartRequest(sandbox_id=id, sandboxer="shim")
        pid: int = self.controller.Start(request).pid
        return pid

    def status(self, id: str) -> Any:
        return self.controller.Status(pb.ControllerStatusRequest(sandbox_id=id, sandboxer="shim"))

    def wait(self, id: str) -> Any:
        return self.controller.Wait(pb.ControllerWaitRequest(sandbox_id=id, sandboxer="shim"))

    def remove(self, id: str) -> None:
        self.controller.Shutdown(pb.ControllerShutdownRequest(sandbox_id=id, sandboxer="shim"))
        self.store.Delete(pb.StoreDeleteRequest(sandbox_id=id))


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def sandboxes(wire: Wire) -> Sandboxes:
    return Sandboxes.of(wire)


# sctl ---------------------------------------------------------------------------------------


def test_a_life_by_sctl(stand: Stand, unique: str) -> None:
    sctl = stand.sctl
    ran = sctl("sandboxes", "run", "--label", "a=b", "--annotation", "x=y", unique)
    try:
        assert ran.out == f"{unique}\n"
        [record] = json.loads(sctl("sandboxes", "ls", "--format", "json", "labels.a==b").out)
        assert (record["id"], record["state"]) == (unique, "SANDBOX_READY")
        assert (record["runtime"], record["sandboxer"]) == (RUNTIME, "shim")
        assert sctl("sb", "ls", "-q").out.split() == [unique]
        info = json.loads(sctl("sandboxes", "info", unique).out)
        assert info["Labels"] == {"a": "b"}
        assert info["Status"]["Info"]["info"]["annotations"] == {"x": "y"}

        container = f"{unique}-1"
        sctl("run", "-d", "--sandbox", unique, stand.image, container, "sleep", "600")
        tasks = {row[0]: row[1] for row in sctl("tasks", "ls").rows()}
        assert parent_of(int(tasks[container])) == record["pid"]
        assert sctl("sandboxes", "stop", unique).out == f"{unique}\n"
        [record] = json.loads(sctl("sandboxes", "ls", "--format", "json").out)
        assert record["state"] == "SANDBOX_NOTREADY"
        sctl.refused("run", "--rm", "--sandbox", unique, stand.image, "late", "true", says="ended")
    finally:
        assert sctl("sandboxes", "rm", unique).out == f"{unique}\n"
    until(lambda: not Path(f"/proc/{record['pid']}").exists())
    assert sctl("tasks", "ls").rows() == []
    sctl("containers", "rm", container)
    result = sctl("sandboxes", "rm", unique, code=1)
    assert unique in result.err and "not found" in result.err


def test_a_run_that_fails_leaves_nothing(sctl: Sctl, unique: str, tmp_path: Path) -> None:
    sctl.refused("sandboxes", "run", "--netns", "/none", unique, says="/none")
    sctl.refused("sandboxes", "run", "--runtime", "io.none.v1", unique, says="io.none.v1")
    sctl.refused("sandboxes", "run", "--sandboxer", "none", unique, says="none")
    sctl.refused("sandboxes", "run", str(tmp_path / "none"), unique, says="none")
    assert sctl("sandboxes", "ls").rows() == []
    config = tmp_path / "config.json"
    config.write_text('{"ociVersion": "1.0.2"}')
    sctl("sandboxes", "run", str(config), unique)
    assert json.loads(sctl("sandboxes", "info", unique).out)["Spec"] == {"ociVersion": "1.0.2"}
    sctl.refused("sandboxes", "run", unique, says="already exists")
    sctl("sandboxes", "rm", "--force", unique)


# The services -------------------------------------------------------------------------------


def test_the_plugins_have_containerds_names(wire: Wire) -> None:
    answer = wire.introspection.Plugins(introspection_pb2.PluginsRequest())
    found = {(plugin.type, plugin.id) for plugin in answer.plugins if not plugin.init_err.code}
    assert found >= {
        ("io.containerd.sandbox.store.v1", "local"),
        ("io.containerd.sandbox.controller.v1", "shim"),
        ("io.containerd.streaming.v1", "manager"),
        ("io.containerd.grpc.v1", "sandboxes"),
        ("io.containerd.grpc.v1", "sandbox-controllers"),
        ("io.containerd.grpc.v1", "streaming"),
    }


def test_the_store(sandboxes: Sandboxes, unique: str) -> None:
    wire, store = sandboxes.wire, sandboxes.store
    made = sandboxes.record(unique)
    assert made.created_at == made.updated_at and made.created_at.seconds > 0
    assert store.Get(pb.StoreGetRequest(sandbox_id=unique)).sandbox == made
    assert list(store.List(pb.StoreListRequest(filters=[f"id=={unique}"])).list) == [made]
    with wire.refused(grpc.StatusCode.ALREADY_EXISTS, unique):
        sandboxes.record(unique)
    changed = types_pb2.Sandbox(sandbox_id=unique, labels={"k": "v"})
    request = pb.StoreUpdateRequest(sandbox=changed, fields=["labels.k"])
    assert store.Update(request).sandbox.labels == {"k": "v"}
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "sandboxer"):
        store.Update(pb.StoreUpdateRequest(sandbox=changed, fields=["sandboxer"]))
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "sandbox"):
        store.Create(pb.StoreCreateRequest())
    store.Delete(pb.StoreDeleteRequest(sandbox_id=unique))
    with wire.refused(grpc.StatusCode.NOT_FOUND, unique):
        store.Get(pb.StoreGetRequest(sandbox_id=unique))
    with wire.refused(grpc.StatusCode.NOT_FOUND, unique):
        store.Delete(pb.StoreDeleteRequest(sandbox_id=unique))


def test_the_controller(sandboxes: Sandboxes, unique: str) -> None:
    wire, controller = sandboxes.wire, sandboxes.controller
    with wire.record('topic~="^/sandboxes/"') as recorder:
        record = sandboxes.record(unique)
        controller.Create(pb.ControllerCreateRequest(sandbox_id=unique, sandboxer="shim"))
        started = controller.Start(pb.ControllerStartRequest(sandbox_id=unique, sandboxer="shim"))
        assert started.address.startswith("ttrpc+unix:///") and started.version == 3
        platform = controller.Platform(
            pb.ControllerPlatformRequest(sandbox_id=unique, sandboxer="shim")
        )
        assert platform.platform.os == "linux"
        status = sandboxes.status(unique)
        assert (status.pid, status.state) == (started.pid, "SANDBOX_READY")
        metrics = controller.Metrics(
            pb.ControllerMetricsRequest(sandbox_id=unique, sandboxer="shim")
        )
        assert metrics.metrics.data.type_url.startswith("io.containerd.cgroups.")
        controller.Update(
            pb.ControllerUpdateRequest(sandbox_id=unique, sandboxer="shim", sandbox=record)
        )
        controller.Stop(pb.ControllerStopRequest(sandbox_id=unique, sandboxer="shim"))
        ended = sandboxes.wait(unique)
        sandboxes.remove(unique)
        assert recorder.expect("/sandboxes/exit")[0].exited_at == ended.exited_at
        assert recorder.topics() == ["/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"]


def test_what_controllers_are_asked(sandboxes: Sandboxes, unique: str) -> None:
    wire, controller = sandboxes.wire, sandboxes.controller
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "name can not be empty"):
        controller.Start(pb.ControllerStartRequest(sandbox_id=unique))
    with wire.refused(grpc.StatusCode.NOT_FOUND, "podsandbox"):
        controller.Wait(pb.ControllerWaitRequest(sandbox_id=unique, sandboxer="podsandbox"))
    with wire.refused(grpc.StatusCode.NOT_FOUND, unique):
        controller.Create(pb.ControllerCreateRequest(sandbox_id=unique, sandboxer="shim"))
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "other"):
        request = pb.ControllerCreateRequest(sandbox_id=unique, sandboxer="shim")
        request.sandbox.sandbox_id = "other"
        controller.Create(request)
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "sandbox"):
        controller.Update(pb.ControllerUpdateRequest(sandbox_id=unique, sandboxer="shim"))
    controller.Stop(pb.ControllerStopRequest(sandbox_id=unique, sandboxer="shim"))
    assert sandboxes.status(unique).state == ""


# Deaths -------------------------------------------------------------------------------------


@pytest.fixture
def mortal(own_daemon: Daemon) -> Iterator[Sandboxes]:
    """A daemon of this test's own."""
    wire = Wire(own_daemon.address, "sdpods", ours=True)
    yield Sandboxes.of(wire)
    wire.close()
    again = Wire(own_daemon.address, "sdpods", ours=True)
    sweep.namespace(again)
    again.close()
    remove_cgroups("/sdpods")


def test_a_sandbox_outlives_the_daemon(own_daemon: Daemon, mortal: Sandboxes) -> None:
    pid = mortal.run("pod")
    doomed = mortal.run("doomed")
    mortal.wire.close()
    own_daemon.kill()
    os.kill(doomed, signal.SIGKILL)
    own_daemon.start()
    after = Sandboxes.of(Wire(own_daemon.address, "sdpods", ours=True))
    try:
        assert (after.status("pod").pid, after.status("pod").state) == (pid, "SANDBOX_READY")
        ended = after.wait("doomed")
        assert ended.exit_status == 137
        assert after.status("doomed").state == "SANDBOX_NOTREADY"
        os.kill(pid, signal.SIGKILL)
        assert after.wait("pod").exit_status == 137
        after.remove("pod")
        after.remove("doomed")
        with after.wire.refused(grpc.StatusCode.NOT_FOUND):
            after.store.Get(pb.StoreGetRequest(sandbox_id="pod"))
        until(lambda: not own_daemon.mounts())
        controller = own_daemon.state / "io.containerd.sandbox.controller.v1.shim"
        until(lambda: not [*controller.glob("s/*"), *controller.glob("sandboxes/*/*")])
    finally:
        after.wire.close()


# Streams ------------------------------------------------------------------------------------


def test_a_stream_ends_with_its_lease(wire: Wire, unique: str) -> None:
    wire.leases.Create(leases_pb2.CreateRequest(id=unique))
    leased = wire.scoped(lease=unique)
    try:
        outgoing: queue.SimpleQueue[AnyMessage | None] = queue.SimpleQueue()
        init = streaming_pb2.StreamInit(id=unique)
        outgoing.put(AnyMessage(type_url=init.DESCRIPTOR.full_name, value=init.SerializeToString()))
        call = streaming_pb2_grpc.StreamingStub(leased.channel).Stream(
            iter(outgoing.get, None), timeout=30
        )
        assert next(call).type_url == "google.protobuf.Empty"
        again = streaming_pb2_grpc.StreamingStub(wire.channel).Stream(
            iter([AnyMessage(type_url=init.DESCRIPTOR.full_name, value=init.SerializeToString())]),
            timeout=30,
        )
        with wire.refused(grpc.StatusCode.ALREADY_EXISTS, unique):
            next(again)
        wire.leases.Delete(leases_pb2.DeleteRequest(id=unique, sync=True))
        assert list(call) == []
        outgoing.put(None)
    finally:
        leased.close()
