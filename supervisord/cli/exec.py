"""``sctl tasks exec``: one more process in a running container."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack, suppress
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.containerd.services.containers.v1.containers_pb2 import Container
from protos.containerd.services.tasks.v1 import tasks_pb2 as wire

from . import patience
from .connection import Connection
from .execution import (
    PROCESS_TYPE,
    get_container,
    hold_readers,
    kill_and_wait,
    rootfs_mounts,
    spec_of,
)
from .spec import env, rootfs
from .spec.users import Users, with_groups
from .stdio import fifos
from .stdio.fifos import Streams
from .stdio.session import Session
from .values import require


def run_exec(daemon: Connection, args: argparse.Namespace) -> int:
    """Runs the command and answers its exit code, or 0 at once for a detached one."""
    require(not (args.tty and args.log_uri), "--tty and --log-uri exclude each other")
    container = get_container(daemon, args.id)
    process = _process(daemon, container, args)
    with ExitStack() as undo:
        streams = Streams(stdout=args.log_uri or "", stderr=args.log_uri or "")
        readers = undo.enter_context(ExitStack())
        session: Session | None = None
        if not args.log_uri:
            streams = fifos.create(
                args.exec_id, terminal=args.tty, parent=args.fifo_dir or fifos.beside(args.address)
            )
            undo.callback(fifos.remove_streams, streams)
        if args.detach:
            if not args.log_uri:
                hold_readers(streams, readers)
        else:
            attached = Streams() if args.log_uri else streams
            session = undo.enter_context(Session(daemon, args.id, args.exec_id, attached))
        daemon.tasks.Exec(
            wire.ExecProcessRequest(
                container_id=args.id,
                exec_id=args.exec_id,
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
                terminal=args.tty,
                spec=AnyMessage(type_url=PROCESS_TYPE, value=json.dumps(process).encode()),
            )
        )
        added = undo.enter_context(ExitStack())
        added.callback(_end, daemon, args.id, args.exec_id)
        if session is None:
            patience.start(daemon, args.id, args.exec_id)
            readers.close()
            undo.pop_all()
            return 0
        code = session.run(lambda: patience.start(daemon, args.id, args.exec_id))
        added.pop_all()
        ended = wire.DeleteProcessRequest(container_id=args.id, exec_id=args.exec_id)
        patience.delete(lambda: daemon.tasks.DeleteProcess(ended))
        return code


def _end(daemon: Connection, id: str, exec_id: str) -> None:
    """Removes an exec that did not get going; there is nothing to say if it is gone."""
    with suppress(grpc.RpcError):
        kill_and_wait(daemon, id, exec_id)
    with suppress(grpc.RpcError):
        daemon.tasks.DeleteProcess(wire.DeleteProcessRequest(container_id=id, exec_id=exec_id))


def _process(daemon: Connection, container: Container, args: argparse.Namespace) -> dict[str, Any]:
    """The container's own process, with what the flags change."""
    spec = spec_of(container)
    process = dict(spec.get("process") or {})
    process["args"] = args.args
    process["terminal"] = args.tty
    environment = process.get("env") or []
    if args.tty and not any(item.startswith("TERM=") for item in environment):
        environment = [*environment, "TERM=xterm"]
    process["env"] = env.merge(environment, args.env)
    if args.cwd:
        process["cwd"] = args.cwd
    if args.user:
        layers = rootfs.layers_of(rootfs_mounts(daemon, container))
        if layers is None:
            # Its own root filesystem is mounted already, below its first process.
            pid = daemon.tasks.Get(wire.GetRequest(container_id=args.id)).process.pid
            path = (spec.get("root") or {}).get("path", "")
            layers = [path if path.startswith("/") else f"/proc/{pid}/root/"]
        users = Users(lambda path: rootfs.read_text(layers, path))
        user = users.resolve(args.user)
        groups = users.supplementary(args.user.partition(":")[0])
        process["user"] = with_groups(user, groups)
    return process
