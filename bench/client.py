"""A plain gRPC client over the generated stubs, with the few compound steps that cases need."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from protos.containerd.runc.v1.options_pb2 import Options
from protos.containerd.services.containers.v1 import containers_pb2 as containers
from protos.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub
from protos.containerd.services.content.v1 import content_pb2 as content
from protos.containerd.services.content.v1.content_pb2_grpc import ContentStub
from protos.containerd.services.diff.v1 import diff_pb2 as diff
from protos.containerd.services.diff.v1.diff_pb2_grpc import DiffStub
from protos.containerd.services.events.v1.events_pb2_grpc import EventsStub
from protos.containerd.services.images.v1.images_pb2_grpc import ImagesStub
from protos.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
from protos.containerd.services.namespaces.v1 import namespaces_pb2 as namespaces
from protos.containerd.services.namespaces.v1.namespaces_pb2_grpc import NamespacesStub
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from protos.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub
from protos.containerd.services.tasks.v1 import tasks_pb2 as tasks
from protos.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub
from protos.containerd.services.version.v1.version_pb2_grpc import VersionStub

NAMESPACE = "bench"
META = (("containerd-namespace", NAMESPACE),)
ROOTED = {"containerd.io/gc.root": "bench"}
LAYER = "application/vnd.oci.image.layer.v1.tar"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
SNAPSHOTTER = "overlayfs"
_CHUNK = 1 << 20


def unique(prefix: str) -> str:
    """A name that nothing else has."""
    return prefix + uuid.uuid4().hex[:12]


def oci_spec(id: str, args: Sequence[str], group: str = NAMESPACE) -> dict[str, Any]:
    """A small OCI runtime spec: the namespaces and mounts of an ordinary container, and a control
    group of its own in ``group``."""
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"]
    kinds = ("bounding", "effective", "permitted")
    tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": tmpfs},
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": [*quiet, "ro"],
            },
        ],
        "linux": {
            "cgroupsPath": f"/{group}/{id}",
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


class Client:
    """One connection to one daemon. ``binary`` is the OCI runtime that tasks are told to use,
    ``group`` the control group that their own are made in."""

    def __init__(self, address: str, binary: str, group: str = NAMESPACE) -> None:
        self.address = address
        self.group = group
        limit = [("grpc.max_receive_message_length", 64 << 20)]
        self._channel = grpc.insecure_channel(f"unix:{address}", options=limit)
        self.containers = ContainersStub(self._channel)
        self.content = ContentStub(self._channel)
        self.diff = DiffStub(self._channel)
        self.events = EventsStub(self._channel)
        self.images = ImagesStub(self._channel)
        self.leases = LeasesStub(self._channel)
        self.namespaces = NamespacesStub(self._channel)
        self.snapshots = SnapshotsStub(self._channel)
        self.tasks = TasksStub(self._channel)
        self.version = VersionStub(self._channel)
        self.binary = binary
        self.base = ""
        self.namespaces.Create(
            namespaces.CreateNamespaceRequest(namespace=namespaces.Namespace(name=NAMESPACE)),
            metadata=META,
        )

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    @contextmanager
    def runtime(self, binary: str) -> Iterator[None]:
        """Another OCI runtime for a while; "" for the daemon's own choice."""
        before, self.binary = self.binary, binary
        try:
            yield
        finally:
            self.binary = before

    def _name_runtime(self, options: Any) -> None:
        if self.binary:
            options.type_url = Options.DESCRIPTOR.full_name
            options.value = Options(binary_name=self.binary).SerializeToString()

    # Content and snapshots ----------------------------------------------------------------

    def write_blob(self, data: bytes) -> str:
        """Writes a blob in pieces of 1 MiB, commits it and answers its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        ref = unique("ref-")

        def requests() -> Iterator[content.WriteContentRequest]:
            for start in range(0, len(data), _CHUNK):
                piece = data[start : start + _CHUNK]
                yield content.WriteContentRequest(
                    action=content.WRITE, ref=ref, total=len(data), offset=start, data=piece
                )
            yield content.WriteContentRequest(
                action=content.COMMIT,
                ref=ref,
                total=len(data),
                offset=len(data),
                expected=digest,
                labels=ROOTED,
            )

        for _ in self.content.Write(requests(), metadata=META, timeout=300):
            pass
        return digest

    def delete_blob(self, digest: str) -> None:
        """Removes a blob."""
        self.content.Delete(content.DeleteContentRequest(digest=digest), metadata=META)

    def unpack(self, digest: str, size: int, media_type: str) -> str:
        """Applies a layer to a new snapshot, commits that and answers its name."""
        name = unique("layer-")
        prepared = self.snapshots.Prepare(
            snapshots.PrepareSnapshotRequest(
                snapshotter=SNAPSHOTTER, key=f"{name}-work", labels=ROOTED
            ),
            metadata=META,
        )
        request = diff.ApplyRequest(mounts=prepared.mounts)
        request.diff.digest, request.diff.size, request.diff.media_type = digest, size, media_type
        self.diff.Apply(request, metadata=META, timeout=300)
        self.snapshots.Commit(
            snapshots.CommitSnapshotRequest(
                snapshotter=SNAPSHOTTER, name=name, key=f"{name}-work", labels=ROOTED
            ),
            metadata=META,
        )
        return name

    def remove_snapshot(self, key: str) -> None:
        """Removes a snapshot."""
        self.snapshots.Remove(
            snapshots.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key), metadata=META
        )

    def load_base(self, layer: bytes) -> None:
        """Makes the snapshot that containers start from."""
        self.base = self.unpack(self.write_blob(layer), len(layer), LAYER)

    # Containers and tasks -----------------------------------------------------------------

    def create_container(self, id: str, args: Sequence[str]) -> None:
        """A writable snapshot and the container record."""
        self.snapshots.Prepare(
            snapshots.PrepareSnapshotRequest(
                snapshotter=SNAPSHOTTER, key=id, parent=self.base, labels=ROOTED
            ),
            metadata=META,
        )
        self.create_record(id, args)

    def create_record(self, id: str, args: Sequence[str]) -> None:
        """The container record alone."""
        request = containers.CreateContainerRequest()
        record = request.container
        record.id, record.snapshotter, record.snapshot_key = id, SNAPSHOTTER, id
        record.runtime.name = "io.containerd.runc.v2"
        self._name_runtime(record.runtime.options)
        record.spec.type_url = SPEC
        record.spec.value = json.dumps(oci_spec(id, args, self.group)).encode()
        self.containers.Create(request, metadata=META)

    def delete_record(self, id: str) -> None:
        """Deletes the container record."""
        self.containers.Delete(containers.DeleteContainerRequest(id=id), metadata=META)

    def start_task(self, id: str, stdout: str = "") -> int:
        """Creates and starts the task; answers its pid."""
        self.create_task(id, stdout=stdout)
        return self.start(id)

    def create_task(self, id: str, stdin: str = "", stdout: str = "", stderr: str = "") -> int:
        """Creates the task, which waits to be started; answers its pid."""
        mounts = self.snapshots.Mounts(
            snapshots.MountsRequest(snapshotter=SNAPSHOTTER, key=id), metadata=META
        ).mounts
        request = tasks.CreateTaskRequest(
            container_id=id, rootfs=mounts, stdin=stdin, stdout=stdout, stderr=stderr
        )
        self._name_runtime(request.options)
        return self.tasks.Create(request, metadata=META, timeout=60).pid

    def start(self, id: str) -> int:
        """Starts a task that was created; answers its pid."""
        return self.tasks.Start(tasks.StartRequest(container_id=id), metadata=META, timeout=60).pid

    def kill(self, id: str) -> None:
        """Kills all of a task."""
        self.tasks.Kill(tasks.KillRequest(container_id=id, signal=9, all=True), metadata=META)

    def wait(self, id: str, exec_id: str = "") -> int:
        """The exit status, once there is one."""
        return self.tasks.Wait(
            tasks.WaitRequest(container_id=id, exec_id=exec_id), metadata=META, timeout=60
        ).exit_status

    def start_exec(self, id: str, exec_id: str) -> None:
        """Starts an exec that was added."""
        request = tasks.StartRequest(container_id=id, exec_id=exec_id)
        self.tasks.Start(request, metadata=META, timeout=60)

    def delete_exec(self, id: str, exec_id: str) -> None:
        """Deletes an exec that has ended, or was never started."""
        request = tasks.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        self.tasks.DeleteProcess(request, metadata=META, timeout=60)

    def delete_task(self, id: str) -> None:
        """Deletes an ended task."""
        self.tasks.Delete(tasks.DeleteTaskRequest(container_id=id), metadata=META, timeout=60)

    def delete_container(self, id: str) -> None:
        """Deletes the record and the snapshot."""
        self.delete_record(id)
        self.remove_snapshot(id)

    @contextmanager
    def sleeping(self, id: str) -> Iterator[int]:
        """A container that sleeps while the block runs; the block gets its pid."""
        self.create_container(id, ["/bin/sleep", "600"])
        pid = self.start_task(id)
        try:
            yield pid
        finally:
            self.kill(id)
            self.wait(id)
            self.delete_task(id)
            self.delete_container(id)
