"""The gRPC services of one socket, through the project's stubs, for one namespace.

Plain synchronous grpc and nothing of the daemon's code. Every call has a deadline. Helpers here
only put together what many tests need: a container from the shared image, events in their order.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from protos.containerd.events import events_pb2
from protos.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from protos.containerd.services.content.v1 import content_pb2_grpc
from protos.containerd.services.diff.v1 import diff_pb2_grpc
from protos.containerd.services.events.v1 import events_pb2 as service_pb2
from protos.containerd.services.events.v1 import events_pb2_grpc
from protos.containerd.services.images.v1 import images_pb2, images_pb2_grpc
from protos.containerd.services.introspection.v1 import introspection_pb2_grpc
from protos.containerd.services.leases.v1 import leases_pb2_grpc
from protos.containerd.services.mounts.v1 import mounts_pb2_grpc
from protos.containerd.services.namespaces.v1 import namespaces_pb2_grpc
from protos.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from protos.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from protos.containerd.services.version.v1 import version_pb2_grpc
from protos.containerd.types import types_pb2

RUNTIME = "io.containerd.runc.v2"
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Scope(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the namespace, the lease and a deadline to every call."""

    def __init__(self, metadata: Sequence[tuple[str, str]], timeout: float) -> None:
        self._metadata = list(metadata)
        self._timeout = timeout

    def _call(self, go_on: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = [*self._metadata, *(details.metadata or [])]
        timeout = self._timeout if details.timeout is None else details.timeout
        return go_on(
            _Details(details.method, timeout, metadata, details.credentials, None, None), request
        )

    intercept_unary_unary = _call  # type: ignore[assignment]
    intercept_unary_stream = _call  # type: ignore[assignment]
    intercept_stream_stream = _call  # type: ignore[assignment]


class Wire:
    """The stubs of a socket in one namespace ("" for none), and under one lease ("" for none)."""

    def __init__(
        self,
        address: str,
        namespace: str,
        *,
        lease: str = "",
        ours: bool = False,
        timeout: float = 20,
    ) -> None:
        self.address, self.namespace, self.ours = address, namespace, ours
        metadata = [("containerd-namespace", namespace)] if namespace else []
        metadata += [("containerd-lease", lease)] if lease else []
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._base = grpc.insecure_channel(f"unix:{address}", options=options)
        channel = grpc.intercept_channel(self._base, _Scope(metadata, timeout))
        self.channel = channel
        self.containers = containers_pb2_grpc.ContainersStub(channel)
        self.content = content_pb2_grpc.ContentStub(channel)
        self.diff = diff_pb2_grpc.DiffStub(channel)
        self.events = events_pb2_grpc.EventsStub(channel)
        self.images = images_pb2_grpc.ImagesStub(channel)
        self.introspection = introspection_pb2_grpc.IntrospectionStub(channel)
        self.leases = leases_pb2_grpc.LeasesStub(channel)
        self.mounts = mounts_pb2_grpc.MountsStub(channel)
        self.namespaces = namespaces_pb2_grpc.NamespacesStub(channel)
        self.snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        self.tasks = tasks_pb2_grpc.TasksStub(channel)
        self.version = version_pb2_grpc.VersionStub(channel)

    def close(self) -> None:
        """Closes the connection."""
        self._base.close()

    def scoped(self, namespace: str | None = None, lease: str = "") -> Wire:
        """Another connection to the same socket."""
        namespace = self.namespace if namespace is None else namespace
        return Wire(self.address, namespace, lease=lease, ours=self.ours)

    @contextlib.contextmanager
    def refused(
        self, code: grpc.StatusCode, *names: str, reference: grpc.StatusCode | None = None
    ) -> Iterator[None]:
        """The block must fail with this code; of ours the message names each of ``names``.

        ``reference`` is the code of Debian's containerd where its own is the poorer one."""
        code = code if self.ours or reference is None else reference
        with pytest.raises(grpc.RpcError) as caught:
            yield
        error: Any = caught.value
        assert error.code() is code, f"{error.code()}: {error.details()}"
        assert error.details(), "an error without a message"
        if self.ours:
            for name in names:
                assert name in error.details(), f"{name!r} is not named in {error.details()!r}"

    # --- containers and tasks -----------------------------------------------------------------

    def container(
        self,
        id: str,
        arguments: Sequence[str] = ("sleep", "600"),
        *,
        parent: str = "",
        labels: dict[str, str] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """A container record with a spec, and a snapshot over ``parent`` under the same key."""
        self.prepare(id, parent)
        self.container_record(id, arguments, labels=labels, change=change)

    def prepare(self, id: str, parent: str = "") -> None:
        """The snapshot of ``container``."""
        self.snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter="overlayfs",
                key=id,
                parent=parent,
                labels={"containerd.io/gc.root": "1"},
            )
        )

    def container_record(
        self,
        id: str,
        arguments: Sequence[str] = ("sleep", "600"),
        *,
        labels: dict[str, str] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """The record of ``container``."""
        document = spec(self.namespace, id, arguments)
        if change is not None:
            change(document)
        record = containers_pb2.Container(id=id, labels=labels or {}, snapshotter="overlayfs")
        record.runtime.name = RUNTIME
        record.snapshot_key = id
        record.spec.type_url = SPEC_URL
        record.spec.value = json.dumps(document).encode()
        self.containers.Create(containers_pb2.CreateContainerRequest(container=record))

    def create_task(self, id: str, **stdio: Any) -> int:
        """Creates the task of a container made by ``container``; answers the pid of init."""
        mounts = self.snapshots.Mounts(
            snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=id)
        ).mounts
        request = tasks_pb2.CreateTaskRequest(container_id=id, rootfs=mounts, **stdio)
        return self.tasks.Create(request).pid

    def start(self, id: str, exec_id: str = "") -> int:
        """Starts init or an exec; answers its pid."""
        return self.tasks.Start(tasks_pb2.StartRequest(container_id=id, exec_id=exec_id)).pid

    def run(self, id: str, arguments: Sequence[str] = ("sleep", "600"), **more: Any) -> int:
        """Container, task and start at once; answers the pid."""
        self.container(id, arguments, **more)
        self.create_task(id)
        return self.start(id)

    def exec(self, id: str, exec_id: str, arguments: Sequence[str], **stdio: Any) -> None:
        """Adds an exec."""
        process = spec(self.namespace, id, arguments)["process"]
        request = tasks_pb2.ExecProcessRequest(container_id=id, exec_id=exec_id, **stdio)
        request.spec.type_url = PROCESS_URL
        request.spec.value = json.dumps(process).encode()
        self.tasks.Exec(request)

    def wait(self, id: str, exec_id: str = "") -> int:
        """Waits for the end of a process; answers its exit status."""
        return self.tasks.Wait(tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)).exit_status

    def kill(self, id: str, signal: int = 9, exec_id: str = "", all: bool = False) -> None:
        """Sends a signal."""
        self.tasks.Kill(
            tasks_pb2.KillRequest(container_id=id, exec_id=exec_id, signal=signal, all=all)
        )

    def delete_task(self, id: str) -> int:
        """Deletes a stopped task; answers its exit status."""
        return self.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=id)).exit_status

    def delete_container(self, id: str) -> None:
        """Deletes the record and the snapshot of ``container``."""
        self.containers.Delete(containers_pb2.DeleteContainerRequest(id=id))
        self.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=id))

    def tasks_by_id(self) -> dict[str, Any]:
        """The answer of Tasks.List by container id."""
        return {t.id: t for t in self.tasks.List(tasks_pb2.ListTasksRequest()).tasks}

    @contextlib.contextmanager
    def record(self, *filters: str) -> Iterator[Recorder]:
        """Collects this namespace's events (or those that match) during the block."""
        recorder = Recorder(self, filters or (f"namespace=={self.namespace}",))
        try:
            recorder.settle()
            recorder.forget()
            yield recorder
        finally:
            recorder.close()


class Recorder:
    """A subscription and what it has received so far."""

    def __init__(self, wire: Wire, filters: Sequence[str]) -> None:
        self._wire = wire
        self._changed = threading.Condition()
        self._received: list[types_pb2.Envelope] = []
        self._error: grpc.RpcError | None = None
        marker = 'topic~="^/marker/"'
        self._stream = wire.events.Subscribe(
            service_pb2.SubscribeRequest(filters=[*filters, marker]), timeout=60
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for envelope in self._stream:
                with self._changed:
                    self._received.append(envelope)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def settle(self, timeout: float = 5) -> None:
        """Returns when everything published before this call has arrived."""
        deadline = time.monotonic() + timeout
        topic = f"/marker/{uuid.uuid4().hex}"
        while time.monotonic() < deadline:
            request = service_pb2.PublishRequest(topic=topic)
            request.event.type_url, request.event.value = "test.Marker", b"x"
            self._wire.events.Publish(request)
            with self._changed:
                if self._changed.wait_for(
                    lambda: any(e.topic == topic for e in self._received), 0.1
                ):
                    return
                if self._error is not None:
                    raise self._error
        raise AssertionError("the subscription does not deliver")

    def forget(self) -> None:
        """Drops what has arrived."""
        with self._changed:
            self._received.clear()

    @property
    def events(self) -> list[types_pb2.Envelope]:
        """What has arrived, without the markers."""
        with self._changed:
            return [e for e in self._received if not e.topic.startswith("/marker/")]

    def topics(self) -> list[str]:
        """The topics in the order of arrival."""
        return [envelope.topic for envelope in self.events]

    def expect(self, topic: str, count: int = 1, timeout: float = 10) -> list[Any]:
        """Waits for that many events of a topic; answers their decoded payloads."""

        def found() -> list[types_pb2.Envelope]:
            return [e for e in self._received if e.topic == topic]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, timeout):
                raise AssertionError(
                    f"{topic} came {len(found())} times, not {count}; "
                    f"all: {[e.topic for e in self._received]}"
                )
            return [payload(e) for e in found()]

    def close(self) -> None:
        """Ends the subscription."""
        self._stream.cancel()
        self._thread.join(5)


def payload(envelope: types_pb2.Envelope) -> Any:
    """The decoded event of an envelope."""
    package, _, name = envelope.event.type_url.rpartition(".")
    module = images_pb2 if package == "containerd.services.images.v1" else events_pb2
    message: Message = getattr(module, name)()
    message.ParseFromString(envelope.event.value)
    return message


def spec(namespace: str, id: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A small OCI runtime spec in its own cgroup ``/NAMESPACE/ID``."""
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": kind} for kind in kinds],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }
