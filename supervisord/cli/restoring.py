"""``sctl containers restore``: a container from a checkpoint image.

Each effect pushes its undo onto the caller's stack, as in ``creation``.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.diff.v1.diff_pb2 import ApplyRequest
from protos.containerd.services.snapshots.v1.snapshots_pb2 import PrepareSnapshotRequest

from . import checkpoints
from .checkpoints import Index, Source
from .connection import Connection
from .creation import remove_container, remove_snapshot
from .errors import CliError
from .images import blobs, manifests, media, unpack
from .values import require


def restore_container(
    daemon: Connection, args: argparse.Namespace, undo: ExitStack
) -> tuple[containers_pb2.Container, Source | None]:
    """Makes the container; answers it, and the memory that its task is to go on from.

    Raises CliError for an image that is no checkpoint or lacks what is asked for."""
    index = checkpoints.load(daemon, args.ref)
    # Everything that can be refused is refused before the first effect.
    image = _annotation(index, media.REF_ANNOTATION, "image")
    snapshotter = _annotation(index, checkpoints.SNAPSHOTTER_ANNOTATION, "snapshotter")
    runtime = _annotation(index, checkpoints.RUNTIME_ANNOTATION, "runtime")
    spec = _message(daemon, index, index.find(checkpoints.SPEC, "spec"))
    spec.value = _in_its_own_cgroup(spec.value, index, daemon.namespace, args.id)
    options = index.part(checkpoints.RUNTIME_OPTIONS)
    changes = index.find(checkpoints.LAYER, "changed files (--rw)") if args.rw else None
    memory = index.find(checkpoints.MEMORY, "memory of a task (--live)") if args.live else None
    container = containers_pb2.Container(
        id=args.id,
        image=image,
        snapshotter=snapshotter,
        snapshot_key=args.id,
        runtime=containers_pb2.Container.Runtime(
            name=runtime, options=_message(daemon, index, options) if options else None
        ),
        spec=spec,
    )
    target = manifests.target_of(manifests.get_image(daemon, image))
    manifest = manifests.select(daemon, target, media.here())
    with daemon.lease():
        top = unpack.ensure(daemon, manifest, snapshotter)
        request = PrepareSnapshotRequest(snapshotter=snapshotter, key=args.id, parent=top)
        mounts = daemon.snapshots.Prepare(request).mounts
        undo.callback(remove_snapshot, daemon, snapshotter, args.id)
        if changes is not None:
            daemon.diff.Apply(ApplyRequest(diff=checkpoints.to_wire(changes), mounts=mounts))
        created = containers_pb2.CreateContainerRequest(container=container)
        container = daemon.containers.Create(created).container
        undo.callback(remove_container, daemon, args.id)
    return container, Source(checkpoints.to_wire(memory)) if memory is not None else None


def _annotation(index: Index, key: str, what: str) -> str:
    value = index.annotations.get(key, "")
    require(value, f'checkpoint "{index.name}" names no {what} (sctl containers checkpoint)')
    return value


def _message(daemon: Connection, index: Index, part: media.Descriptor) -> AnyMessage:
    try:
        return AnyMessage.FromString(blobs.read(daemon, part.digest))
    except DecodeError as error:
        raise CliError(f'checkpoint "{index.name}": {part.media_type}: {error}') from None


def _in_its_own_cgroup(value: bytes, index: Index, namespace: str, id: str) -> bytes:
    """The spec with the control group that a new container of this id gets, where the old one
    had its own by default: two containers in one would end together."""
    spec: dict[str, Any] = blobs.parse_json(value, f'the spec of checkpoint "{index.name}"')
    linux = spec.get("linux")
    path = linux.get("cgroupsPath") if isinstance(linux, dict) else None
    if not isinstance(path, str) or path.rpartition("/")[0] != f"/{namespace}":
        return value
    spec["linux"]["cgroupsPath"] = f"/{namespace}/{id}"
    return json.dumps(spec, separators=(",", ":")).encode()
