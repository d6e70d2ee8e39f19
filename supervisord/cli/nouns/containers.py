"""``sctl containers``: create, info, label, list, checkpoint, restore, remove containers."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc

from ..arguments import Noun, format_flag, quiet_flag
from ..connection import Connection, connect
from ..errors import CliError, Exit, Failures, is_code
from ..output import labels_line, listing, moment, show, show_json
from ..stdio.flags import add_flags
from ..values import label_change, labels_of
from . import run

if TYPE_CHECKING:
    from protos.containerd.services.containers.v1.containers_pb2 import Container


def register(noun: Noun) -> None:
    """Declares the verbs."""
    from ..spec import flags

    verb = noun.verb("create", create, "create a container without starting it")
    verb.usage = "sctl containers create [FLAGS] IMAGE ID [COMMAND] [ARG...]"
    run.add_arguments(verb)
    flags.add_flags(verb)
    verb.set_defaults(cpu_shares=0)

    verb = noun.verb("info", info, "show everything about a container as JSON", ["inspect"])
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--spec", action="store_true", help="only the OCI spec")

    verb = noun.verb("ls", list_containers, "list containers", ["list"])
    verb.add_argument("filters", nargs="*", metavar="FILTER", help="such as labels.app==web")
    quiet_flag(verb, "ids")
    format_flag(verb)

    verb = noun.verb("label", label, "set and clear labels; an empty value clears one")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("labels", nargs="+", type=label_change, metavar="KEY=VALUE")

    _register_checkpoints(noun)

    verb = noun.verb("rm", remove, "remove containers that do not run", ["delete", "del", "remove"])
    verb.add_argument("ids", nargs="+", metavar="ID")
    verb.add_argument("--keep-snapshot", action="store_true", help="leave the snapshot")


def _register_checkpoints(noun: Noun) -> None:
    verb = noun.verb(
        "checkpoint",
        checkpoint,
        "make an image of a container, to restore it from",
        note="It is paused meanwhile. Without flags the image holds the spec alone.",
    )
    verb.add_argument("id", metavar="ID")
    verb.add_argument("ref", metavar="IMAGE", help="what to call the checkpoint")
    verb.add_argument("--rw", action="store_true", help="with its changed files")
    verb.add_argument("--image", action="store_true", help="with the image that it was made from")
    verb.add_argument("--task", action="store_true", help="with the memory of its task, by criu")

    verb = noun.verb(
        "restore",
        restore,
        "make a container from a checkpoint and run it",
        note="Its image has to be there still.",
    )
    verb.add_argument("id", metavar="ID", help="the new container's id")
    verb.add_argument("ref", metavar="IMAGE", help="made by 'sctl containers checkpoint'")
    verb.add_argument("--rw", action="store_true", help="with the changed files")
    verb.add_argument("--live", action="store_true", help="go on from the memory, by criu")
    add_flags(verb)


def create(args: argparse.Namespace) -> None:
    """Creates a container."""
    from ..creation import create_container

    run.settle(args)
    with connect(args) as daemon, ExitStack() as undo:
        create_container(daemon, args, undo)
        undo.pop_all()


def info(args: argparse.Namespace) -> None:
    """Prints a container's record, with its spec decoded."""
    from ..execution import get_container, spec_of

    with connect(args) as daemon:
        container = get_container(daemon, args.id)
    if args.spec:
        show_json(spec_of(container))
        return
    # In the shape that ctr prints, so that scripts need not care which of the two they call.
    show_json(
        {
            "ID": container.id,
            "Labels": dict(container.labels),
            "Image": container.image,
            "Runtime": {"Name": container.runtime.name, "Options": _options(container)},
            "SnapshotKey": container.snapshot_key,
            "Snapshotter": container.snapshotter,
            "CreatedAt": moment(container.created_at),
            "UpdatedAt": moment(container.updated_at),
            "Extensions": {key: value.type_url for key, value in container.extensions.items()},
            "Sandbox": container.sandbox,
            "Spec": json.loads(container.spec.value or b"null"),
        }
    )


def _record(container: Container) -> dict[str, Any]:
    return {
        "id": container.id,
        "image": container.image,
        "runtime": container.runtime.name,
        "runtime_options": _options(container),
        "snapshotter": container.snapshotter,
        "snapshot_key": container.snapshot_key,
        "labels": dict(container.labels),
        "created_at": moment(container.created_at),
        "updated_at": moment(container.updated_at),
        "extensions": {key: value.type_url for key, value in container.extensions.items()},
        "sandbox": container.sandbox,
    }


def _options(container: Container) -> dict[str, Any]:
    from .events import decode

    return decode(container.runtime.options) if container.runtime.options.type_url else {}


def list_containers(args: argparse.Namespace) -> None:
    """Prints the containers that match."""
    from protos.containerd.services.containers.v1.containers_pb2 import ListContainersRequest

    with connect(args) as daemon:
        found = daemon.containers.List(ListContainersRequest(filters=args.filters)).containers
    if args.quiet:
        for container in found:
            show(container.id)
        return
    columns = [("CONTAINER", "id"), ("IMAGE", "image"), ("RUNTIME", "runtime")]
    listing([_record(container) for container in found], columns, format=args.format)


def label(args: argparse.Namespace) -> None:
    """Changes labels and prints all."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from protos.containerd.services.containers.v1 import containers_pb2 as wire

    changes = labels_of(args.labels)
    request = wire.UpdateContainerRequest(
        container=wire.Container(id=args.id, labels=changes),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in changes]),
    )
    with connect(args) as daemon:
        show(labels_line(daemon.containers.Update(request).container.labels))


def checkpoint(args: argparse.Namespace) -> None:
    """Makes a checkpoint image of a container."""
    from ..checkpointing import checkpoint_container

    with connect(args) as daemon:
        checkpoint_container(daemon, args)


def restore(args: argparse.Namespace) -> None:
    """Makes a container from a checkpoint and runs it; unless detached ends with its exit code."""
    from ..execution import run_task
    from ..restoring import restore_container

    with connect(args) as daemon, ExitStack() as undo:
        container, memory = restore_container(daemon, args, undo)

        def keep() -> None:
            undo.pop_all()

        code = run_task(daemon, container, args, keep, memory)
    if code:
        raise Exit(code)


def remove(args: argparse.Namespace) -> None:
    """Removes records, their stopped tasks and their snapshots; goes on after a failure."""
    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for id in args.ids:
            with failures.of(id):
                _remove(daemon, id, keep_snapshot=args.keep_snapshot)
    failures.check()


def _remove(daemon: Connection, id: str, *, keep_snapshot: bool) -> None:
    from protos.containerd.services.containers.v1.containers_pb2 import DeleteContainerRequest
    from protos.containerd.services.tasks.v1 import tasks_pb2
    from protos.containerd.v1.types.task_pb2 import Status

    from ..creation import remove_snapshot
    from ..execution import get_container
    from ..stdio.fifos import remove as remove_fifos

    container = get_container(daemon, id)
    try:
        process = daemon.tasks.Get(tasks_pb2.GetRequest(container_id=id)).process
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise
    else:
        if process.status not in (Status.STOPPED, Status.CREATED):
            status = Status.Name(process.status).lower()
            raise CliError(f'container "{id}" is {status} (sctl tasks kill, or tasks rm --force)')
        if process.status == Status.CREATED:
            from ..execution import kill_and_wait

            kill_and_wait(daemon, id, "")
        daemon.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=id))
        remove_fifos((process.stdin, process.stdout, process.stderr))
    daemon.containers.Delete(DeleteContainerRequest(id=id))
    if container.snapshot_key and not keep_snapshot:
        remove_snapshot(daemon, container.snapshotter, container.snapshot_key)
