"""Checkpoint images: what ``tasks checkpoint`` and ``containers checkpoint`` write, and what a
task or a container is restored from.

One is an index in the content store, laid out as containerd's clients do it: the memory of the
task, the spec, the changes of the root filesystem, the image, each there only where wanted. The
daemon makes and reads the memory; this module never looks into it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1.options_pb2 import CheckpointOptions
from protos.containerd.services.containers.v1.containers_pb2 import Container
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as wire
from protos.containerd.types import types_pb2
from protos.containerd.v1.types.task_pb2 import Status

from .connection import Connection
from .errors import CliError, is_code, rpc_text
from .images import blobs, manifests, media
from .output import warn
from .snapdiff import layer_between

_CONTAINER = "application/vnd.containerd.container"
MEMORY = f"{_CONTAINER}.criu.checkpoint.criu.tar"
SPEC = f"{_CONTAINER}.checkpoint.config.v1+proto"
TASK_OPTIONS = f"{_CONTAINER}.checkpoint.options.v1+proto"
RUNTIME_OPTIONS = f"{_CONTAINER}.checkpoint.runtime.options+proto"
LAYER = f"{media.OCI}.layer.v1.tar+gzip"

RUNTIME_ANNOTATION = "io.containerd.checkpoint.runtime"
SNAPSHOTTER_ANNOTATION = "io.containerd.checkpoint.snapshotter"
LABEL = "containerd.io/checkpoint"


@dataclass(slots=True)
class Index:
    """What a checkpoint image holds. ``add`` appends; ``find`` raises CliError."""

    name: str
    annotations: dict[str, str] = field(default_factory=dict)
    parts: list[media.Descriptor] = field(default_factory=list)

    def add(self, part: types_pb2.Descriptor) -> None:
        """Appends a blob that the daemon has written for this platform."""
        self.parts.append(
            media.Descriptor(
                part.media_type, part.digest, part.size, dict(part.annotations), media.here()
            )
        )

    def part(self, media_type: str) -> media.Descriptor | None:
        """The first part of this type."""
        return next((part for part in self.parts if part.media_type == media_type), None)

    def find(self, media_type: str, what: str) -> media.Descriptor:
        """The first part of this type. Raises CliError where there is none."""
        part = self.part(media_type)
        if part is None:
            raise CliError(f'checkpoint "{self.name}" holds no {what}')
        return part


def new_name(id: str) -> str:
    """What ctr calls the checkpoint of a task when it is made."""
    return f"containerd.io/checkpoint/{id}:{time.strftime('%m-%d-%Y-%H:%M:%S')}"


def memory(daemon: Connection, id: str, options: CheckpointOptions) -> list[types_pb2.Descriptor]:
    """Checkpoints the task; answers the memory and the spec, or nothing where they stay in the
    folder that the options name."""
    packed = AnyMessage(
        type_url=CheckpointOptions.DESCRIPTOR.full_name, value=options.SerializeToString()
    )
    request = wire.CheckpointTaskRequest(container_id=id, options=packed)
    return list(daemon.tasks.Checkpoint(request).descriptors)


def add_bytes(daemon: Connection, index: Index, media_type: str, data: bytes) -> None:
    """Stores a small blob as a part."""
    digest = blobs.upload_bytes(daemon, data)
    index.parts.append(media.Descriptor(media_type, digest, len(data), platform=media.here()))


def add_changes(daemon: Connection, index: Index, container: Container) -> None:
    """Stores what has changed in the root filesystem as a part."""
    key = container.snapshot_key
    layer = layer_between(
        daemon,
        container.snapshotter,
        key,
        "",
        media_type=LAYER,
        ref=f"checkpoint-rw-{key}",
        labels={},
    )
    index.add(layer)


def add_image(daemon: Connection, index: Index, container: Container) -> None:
    """Lets the checkpoint hold the image of its container."""
    index.parts.append(manifests.target_of(manifests.get_image(daemon, container.image)))


@contextmanager
def still(daemon: Connection, id: str, *, wanted: bool = True) -> Iterator[None]:
    """Pauses a task that runs for the length of a block, so that its files stay what they are."""
    if not wanted or _status(daemon, id) != Status.RUNNING:
        yield
        return
    daemon.tasks.Pause(wire.PauseTaskRequest(container_id=id))
    try:
        yield
    finally:
        try:
            daemon.tasks.Resume(wire.ResumeTaskRequest(container_id=id))
        except grpc.RpcError as error:
            warn(f"task {id} could not be resumed: {rpc_text(error, daemon.address)}")


def _status(daemon: Connection, id: str) -> int:
    try:
        return daemon.tasks.Get(wire.GetRequest(container_id=id)).process.status
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            return Status.UNKNOWN
        raise


def save(daemon: Connection, index: Index, labels: dict[str, str]) -> None:
    """Stores the index and names it. The caller holds a lease."""
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media.INDEX,
        "manifests": [part.to_json() for part in index.parts],
        "annotations": index.annotations,
    }
    data = json.dumps(value, separators=(",", ":")).encode()
    held = {
        f"containerd.io/gc.ref.content.{number}": part.digest
        for number, part in enumerate(index.parts)
    }
    digest = blobs.upload_bytes(daemon, data, held)
    target = types_pb2.Descriptor(media_type=media.INDEX, digest=digest, size=len(data))
    image = images_pb2.Image(name=index.name, target=target, labels=labels)
    daemon.images.Create(images_pb2.CreateImageRequest(image=image))


def load(daemon: Connection, name: str) -> Index:
    """The checkpoint image of that name. Raises CliError where it is none."""
    target = manifests.target_of(manifests.get_image(daemon, name))
    if not target.is_index:
        raise CliError(f'image "{name}" is not a checkpoint: {target.media_type}')
    annotations = blobs.read_json(daemon, target.digest).get("annotations") or {}
    if not isinstance(annotations, dict) or not all(
        isinstance(item, str) for item in annotations.values()
    ):
        raise CliError(f'checkpoint "{name}": annotations are not text by name')
    return Index(name, annotations, manifests.children(daemon, target))


@dataclass(frozen=True, slots=True)
class Source:
    """Where the memory of a task that is restored comes from: a part of a checkpoint image, or
    a folder on the daemon's machine."""

    part: types_pb2.Descriptor | None = None
    folder: str = ""


def to_wire(part: media.Descriptor) -> types_pb2.Descriptor:
    """A part as requests name it."""
    return types_pb2.Descriptor(
        media_type=part.media_type,
        digest=part.digest,
        size=part.size,
        annotations=part.annotations,
    )


def source(daemon: Connection, text: str) -> Source | None:
    """What ``--checkpoint`` names: an image, or a folder by its absolute path; none for ""."""
    if not text:
        return None
    if text.startswith("/"):
        return Source(folder=text)
    part = load(daemon, text).find(MEMORY, "memory of a task")
    return Source(to_wire(part))
