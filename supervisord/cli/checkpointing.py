"""``sctl tasks checkpoint`` and ``sctl containers checkpoint``."""

from __future__ import annotations

import argparse
from pathlib import Path

from protos.containerd.runc.v1.options_pb2 import CheckpointOptions

from . import checkpoints
from .connection import Connection
from .execution import get_container
from .images import media
from .values import require


def checkpoint_task(daemon: Connection, args: argparse.Namespace) -> str:
    """Checkpoints a task; answers the name of the image, "" where the memory went to a folder."""
    options = CheckpointOptions(
        exit=args.exit,
        image_path=_absolute(args.image_path),
        work_path=_absolute(args.work_path),
    )
    if args.image_path:
        checkpoints.memory(daemon, args.id, options)
        return ""
    container = get_container(daemon, args.id)
    index = checkpoints.Index(checkpoints.new_name(args.id))
    # One that ends with its checkpoint changes nothing after it.
    with daemon.lease(), checkpoints.still(daemon, args.id, wanted=not args.exit):
        for part in checkpoints.memory(daemon, args.id, options):
            index.add(part)
        if container.image:
            checkpoints.add_image(daemon, index, container)
            index.annotations["image.name"] = container.image
        if container.snapshot_key:
            checkpoints.add_changes(daemon, index, container)
        checkpoints.save(daemon, index, {checkpoints.LABEL: "true"})
    return index.name


def checkpoint_container(daemon: Connection, args: argparse.Namespace) -> None:
    """Makes an image that ``containers restore`` makes a container of."""
    container = get_container(daemon, args.id)
    require(container.image, f"container {args.id} was not made from an image")
    index = checkpoints.Index(args.ref)
    index.annotations = {
        media.REF_ANNOTATION: container.image,
        checkpoints.RUNTIME_ANNOTATION: container.runtime.name,
        checkpoints.SNAPSHOTTER_ANNOTATION: container.snapshotter,
    }
    with daemon.lease(), checkpoints.still(daemon, args.id):
        runtime = container.runtime.options
        if runtime.value:
            data = runtime.SerializeToString()
            checkpoints.add_bytes(daemon, index, checkpoints.RUNTIME_OPTIONS, data)
        if args.image:
            checkpoints.add_image(daemon, index, container)
        if args.rw:
            checkpoints.add_changes(daemon, index, container)
        if args.task:
            options = CheckpointOptions(file_locks=True)
            for part in checkpoints.memory(daemon, args.id, options):
                index.add(part)
            data = options.SerializeToString()
            checkpoints.add_bytes(daemon, index, checkpoints.TASK_OPTIONS, data)
        if index.part(checkpoints.SPEC) is None:
            data = container.spec.SerializeToString()
            checkpoints.add_bytes(daemon, index, checkpoints.SPEC, data)
        checkpoints.save(daemon, index, {checkpoints.LABEL: "true"})


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""
