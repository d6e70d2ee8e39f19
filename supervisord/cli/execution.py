"""Running a container's task: streams, create, start, wait, delete; for ``run`` and ``tasks``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.runc.v1.options_pb2 import Options
from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as wire
from protos.containerd.types.types_pb2 import Mount
from protos.containerd.v1.types.task_pb2 import Status

from . import patience
from .checkpoints import Source
from .connection import Connection
from .errors import CliError, is_code, rpc_text
from .output import warn
from .stdio import fifos
from .stdio.fifos import Streams, beside
from .stdio.session import Session
from .values import require

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
# How long a process may take to die of SIGKILL before a command gives up on it.
_KILL_TIMEOUT = 10.0


def get_container(daemon: Connection, id: str) -> containers_pb2.Container:
    """The record of a container."""
    return daemon.containers.Get(containers_pb2.GetContainerRequest(id=id)).container


def spec_of(container: containers_pb2.Container) -> dict[str, Any]:
    """The container's OCI spec. Raises CliError when it is not JSON."""
    try:
        spec = json.loads(container.spec.value)
    except (ValueError, RecursionError) as error:
        raise CliError(f"the spec of container {container.id} is not JSON: {error}") from None
    require(isinstance(spec, dict), f"the spec of container {container.id} is not an object")
    return dict(spec)


def rootfs_mounts(daemon: Connection, container: containers_pb2.Container) -> Sequence[Mount]:
    """The mounts of the container's snapshot; none where its spec names a folder."""
    if not container.snapshot_key:
        return ()
    request = snapshots_pb2.MountsRequest(
        snapshotter=container.snapshotter, key=container.snapshot_key
    )
    return daemon.snapshots.Mounts(request).mounts


def run_task(
    daemon: Connection,
    container: containers_pb2.Container,
    args: argparse.Namespace,
    started: Callable[[], None],
    source: Source | None = None,
) -> int:
    """Creates and starts the task, anew or from a checkpoint; ``started`` is called once it runs.
    Answers the exit code once it has ended and is deleted, or 0 at once for a detached one. A
    failure leaves no task."""
    spec = spec_of(container)
    terminal = bool(spec.get("process", {}).get("terminal"))
    require(not (terminal and args.null_io), "--tty and --null-io exclude each other")
    require(not (terminal and args.log_uri), "--tty and --log-uri exclude each other")
    own_streams = not (args.null_io or args.log_uri)
    mounts = rootfs_mounts(daemon, container)
    with ExitStack() as undo:
        streams = Streams(stdout=args.log_uri or "", stderr=args.log_uri or "")
        session: Session | None = None
        readers = undo.enter_context(ExitStack())
        if own_streams:
            streams = fifos.create(
                container.id, terminal=terminal, parent=args.fifo_dir or beside(args.address)
            )
            undo.callback(fifos.remove_streams, streams)
        if own_streams and args.detach:
            hold_readers(streams, readers)
        elif not args.detach:
            attached = streams if own_streams else Streams()
            session = undo.enter_context(Session(daemon, container.id, "", attached))
        request = wire.CreateTaskRequest(
            container_id=container.id,
            rootfs=mounts,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=terminal,
            checkpoint=source.part if source else None,
            options=_options(
                container, spec, no_pivot=args.no_pivot, folder=source.folder if source else ""
            ),
        )
        pid = daemon.tasks.Create(request).pid
        task = undo.enter_context(ExitStack())
        task.callback(end_task, daemon, container.id)
        if args.pid_file and pid:
            Path(args.pid_file).write_text(str(pid))

        def start() -> None:
            patience.start(daemon, container.id)
            if args.pid_file and not pid:
                # What is restored has a process only now.
                found = daemon.tasks.Get(wire.GetRequest(container_id=container.id)).process
                Path(args.pid_file).write_text(str(found.pid))
            started()

        if session is None:
            start()
            readers.close()
            undo.pop_all()
            return 0
        code = session.run(start)
        task.pop_all()
        ended = wire.DeleteTaskRequest(container_id=container.id)
        patience.delete(lambda: daemon.tasks.Delete(ended))
        return code


def hold_readers(streams: Streams, stack: ExitStack) -> None:
    """Opens the reading ends for as long as a shim needs to open its own."""
    for path in (streams.stdout, streams.stderr):
        if path:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, fd)


def _options(
    container: containers_pb2.Container, spec: dict[str, Any], *, no_pivot: bool, folder: str
) -> AnyMessage | None:
    """Task options, only where they differ from those of the container's runtime; ``folder`` holds
    a checkpoint to go on from."""
    linux = spec.get("linux") or {}
    owners = [
        linux[name][0]["hostID"] if linux.get(name) else 0
        for name in ("uidMappings", "gidMappings")
    ]
    if not no_pivot and not folder and not any(owners):
        return None
    options = Options()
    if container.runtime.options.type_url == Options.DESCRIPTOR.full_name:
        options.ParseFromString(container.runtime.options.value)
    options.no_pivot_root = no_pivot
    options.criu_image_path = folder
    options.io_uid, options.io_gid = owners
    return AnyMessage(type_url=Options.DESCRIPTOR.full_name, value=options.SerializeToString())


def end_task(daemon: Connection, id: str) -> None:
    """Kills and deletes a task as an undo: a failure is told, not raised."""
    try:
        kill_and_wait(daemon, id, "")
        daemon.tasks.Delete(wire.DeleteTaskRequest(container_id=id))
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            warn(f"task {id} could not be deleted: {rpc_text(error, daemon.address)}")


def kill_and_wait(daemon: Connection, id: str, exec_id: str) -> None:
    """Sends SIGKILL and waits, at most 10 s, until the process has ended. A task that is to be
    restored has none until it is started, and nothing to wait for."""
    process = daemon.tasks.Get(wire.GetRequest(container_id=id, exec_id=exec_id)).process
    if not exec_id and process.status == Status.CREATED and not process.pid:
        return
    request = wire.WaitRequest(container_id=id, exec_id=exec_id)
    future: Any = daemon.tasks.Wait.future(request, timeout=_KILL_TIMEOUT)
    with suppress(grpc.RpcError):
        # It may have ended already, or never have started; the wait tells.
        daemon.tasks.Kill(
            wire.KillRequest(container_id=id, exec_id=exec_id, signal=9, all=not exec_id)
        )
    future.result()
