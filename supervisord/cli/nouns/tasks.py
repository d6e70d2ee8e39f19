"""``sctl tasks``: start, exec, attach, list, signal, pause, measure, checkpoint, change the limits
of and remove running containers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import grpc

from .. import updating
from ..arguments import Noun, format_flag, quiet_flag
from ..connection import Connection, connect
from ..errors import CliError, Exit, Failures, is_code
from ..output import listing, moment, show, show_json, warn
from ..stdio.flags import add_flags, checkpoint_flag, log_uri
from ..values import require, signal_number

STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"


def register(noun: Noun) -> None:
    """Declares the verbs."""
    verb = noun.verb("start", start, "start a container that was created")
    verb.add_argument("id", metavar="ID")
    checkpoint_flag(verb)
    add_flags(verb)

    verb = noun.verb("ls", list_tasks, "list tasks", ["list"])
    quiet_flag(verb, "ids")
    format_flag(verb)

    verb = noun.verb("ps", processes, "list the processes of a container")
    verb.add_argument("id", metavar="ID")
    format_flag(verb)
    _register_exec(noun)
    _register_changes(noun)

    verb = noun.verb("kill", kill, "signal a container (its stop signal, or SIGTERM)")
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--signal", "-s", type=signal_number, metavar="SIGNAL")
    verb.add_argument("--exec-id", default="", metavar="EXEC", help="signal this process of it")
    verb.add_argument("--all", "-a", action="store_true", help="signal every process of it")

    for name, run, summary in (
        ("pause", pause, "freeze a container"),
        ("resume", resume, "let a paused container go on"),
    ):
        verb = noun.verb(name, run, summary)
        verb.add_argument("id", metavar="ID")

    verb = noun.verb("wait", wait, "wait until containers have ended and print their exit codes")
    verb.add_argument("ids", nargs="+", metavar="ID")

    verb = noun.verb("metrics", metrics, "show what a container uses right now", ["metric"])
    verb.add_argument("id", metavar="ID")
    format_flag(verb)

    verb = noun.verb("rm", remove, "delete tasks that have ended", ["delete", "del", "remove"])
    verb.add_argument("ids", nargs="+", metavar="ID")
    verb.add_argument("--force", "-f", action="store_true", help="kill what still runs")
    verb.add_argument("--exec-id", default="", metavar="EXEC", help="delete this process of it")


def _register_exec(noun: Noun) -> None:
    verb = noun.verb("exec", exec_, "run one more process in a running container")
    verb.usage = "sctl tasks exec [FLAGS] ID COMMAND [ARG...]"
    verb.add_argument("id", metavar="ID")
    verb.add_argument("args", nargs=argparse.REMAINDER, metavar="COMMAND")
    verb.add_argument("--exec-id", default="", metavar="EXEC", help="its id (default: made up)")
    verb.add_argument("--tty", "-t", action="store_true", help="give it a terminal")
    verb.add_argument("--detach", "-d", action="store_true", help="return once it has started")
    verb.add_argument("--cwd", metavar="DIR")
    verb.add_argument("--env", "-e", action="append", default=[], metavar="KEY=VALUE")
    verb.add_argument("--user", metavar="USER", help="name, uid, name:group or uid:gid")
    verb.add_argument(
        "--log-uri", type=log_uri, metavar="URI", help="let the shim write the output"
    )
    verb.add_argument("--fifo-dir", metavar="DIR")

    verb = noun.verb("attach", attach, "connect to the streams of a running container")
    verb.add_argument("id", metavar="ID")


def _register_changes(noun: Noun) -> None:
    verb = noun.verb(
        "checkpoint",
        checkpoint,
        "write the memory of a running container down",
        note="Prints the name of the image that 'sctl tasks start --checkpoint' goes on from.\n"
        "The daemon's machine needs criu, a kernel that it can work with, and a runtime that\n"
        "was built with it, such as runc.",
    )
    verb.add_argument("id", metavar="ID")
    verb.add_argument("--exit", action="store_true", help="end the container with it")
    verb.add_argument(
        "--image-path", default="", metavar="DIR", help="write to this folder, and make no image"
    )
    verb.add_argument("--work-path", default="", metavar="DIR", help="where criu leaves its logs")

    verb = noun.verb(
        "update",
        update,
        "change the limits of a running container",
        note="What is not named stays as it is. The change lasts as long as the task: the spec\n"
        "of the container is not touched.",
    )
    verb.add_argument("id", metavar="ID")
    updating.add_flags(verb)


def start(args: argparse.Namespace) -> None:
    """Starts a task, and unless detached ends with its exit code."""
    from ..checkpoints import source
    from ..execution import get_container, run_task

    with connect(args) as daemon:
        memory = source(daemon, args.checkpoint)
        code = run_task(daemon, get_container(daemon, args.id), args, lambda: None, memory)
    if code:
        raise Exit(code)


def exec_(args: argparse.Namespace) -> None:
    """Runs a process in a container, and unless detached ends with its exit code."""
    from ..exec import run_exec

    require(args.args, "the command is missing: ID COMMAND [ARG...]")
    args.exec_id = args.exec_id or f"exec-{os.urandom(4).hex()}"
    with connect(args) as daemon:
        code = run_exec(daemon, args)
    if code:
        raise Exit(code)


def attach(args: argparse.Namespace) -> None:
    """Connects to a task's FIFOs until it ends; ends with its exit code."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import DeleteTaskRequest, GetRequest

    from ..stdio.fifos import Streams, remove_streams
    from ..stdio.session import SIGPIPE_CODE, Session

    with connect(args) as daemon:
        process = daemon.tasks.Get(GetRequest(container_id=args.id)).process
        streams = Streams(process.stdin, process.stdout, process.stderr, process.terminal)
        for path in filter(None, (streams.stdout, streams.stderr)):
            require(
                path.startswith("/"),
                f"the output of {args.id} goes to {path} (sctl logs {args.id})",
            )
            require(Path(path).exists(), f"the streams of {args.id} are gone: no {path}")
        require(streams.stdout, f"the output of {args.id} is discarded (--null-io)")
        with Session(daemon, args.id, "", streams, own=False) as session:
            code = session.run(lambda: None)
        if code != SIGPIPE_CODE:
            daemon.tasks.Delete(DeleteTaskRequest(container_id=args.id))
            remove_streams(streams)
    if code:
        raise Exit(code)


def list_tasks(args: argparse.Namespace) -> None:
    """Prints all tasks of the namespace."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import ListTasksRequest
    from protos.containerd.v1.types.task_pb2 import Status

    with connect(args) as daemon:
        tasks = daemon.tasks.List(ListTasksRequest()).tasks
    if args.quiet:
        for task in tasks:
            show(task.id)
        return
    records = [
        {
            "id": task.id,
            "pid": task.pid,
            "status": Status.Name(task.status),
            "exit_status": task.exit_status,
            "exited_at": moment(task.exited_at),
            "terminal": task.terminal,
            "stdin": task.stdin,
            "stdout": task.stdout,
            "stderr": task.stderr,
        }
        for task in tasks
    ]
    listing(records, [("TASK", "id"), ("PID", "pid"), ("STATUS", "status")], format=args.format)


def processes(args: argparse.Namespace) -> None:
    """Prints the processes of a task."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import ListPidsRequest

    from .events import decode

    with connect(args) as daemon:
        found = daemon.tasks.ListPids(ListPidsRequest(container_id=args.id)).processes
    records = [
        {"pid": item.pid, "info": decode(item.info) if item.HasField("info") else {}}
        for item in found
    ]
    listing(records, [("PID", "pid"), ("INFO", "info")], format=args.format)


def kill(args: argparse.Namespace) -> None:
    """Sends a signal."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import KillRequest

    from ..execution import get_container

    require(not (args.all and args.exec_id), "--all and --exec-id exclude each other")
    with connect(args) as daemon:
        number = args.signal
        if number is None:
            labels = get_container(daemon, args.id).labels
            number = signal_number(labels.get(STOP_SIGNAL_LABEL) or "SIGTERM")
        daemon.tasks.Kill(
            KillRequest(container_id=args.id, exec_id=args.exec_id, signal=number, all=args.all)
        )


def pause(args: argparse.Namespace) -> None:
    """Freezes a task."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import PauseTaskRequest

    with connect(args) as daemon:
        daemon.tasks.Pause(PauseTaskRequest(container_id=args.id))


def resume(args: argparse.Namespace) -> None:
    """Thaws a task."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import ResumeTaskRequest

    with connect(args) as daemon:
        daemon.tasks.Resume(ResumeTaskRequest(container_id=args.id))


def checkpoint(args: argparse.Namespace) -> None:
    """Checkpoints a task, and prints the name of the image where it made one."""
    from ..checkpointing import checkpoint_task

    with connect(args) as daemon:
        name = checkpoint_task(daemon, args)
    if name:
        show(name)


def update(args: argparse.Namespace) -> None:
    """Changes the limits of a task."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    from protos.containerd.services.tasks.v1.tasks_pb2 import UpdateTaskRequest

    value = json.dumps(updating.resources_of(args)).encode()
    resources = AnyMessage(type_url=updating.RESOURCES_TYPE, value=value)
    with connect(args) as daemon:
        daemon.tasks.Update(UpdateTaskRequest(container_id=args.id, resources=resources))


def wait(args: argparse.Namespace) -> None:
    """Prints the exit code of each, in the order given."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import WaitRequest

    with connect(args) as daemon:
        for id in args.ids:
            show(str(daemon.tasks.Wait(WaitRequest(container_id=id)).exit_status))


def metrics(args: argparse.Namespace) -> None:
    """Prints one measurement of a task."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import MetricsRequest

    from ..measure import decode, rows

    with connect(args) as daemon:
        found = daemon.tasks.Metrics(MetricsRequest(filters=[f"id=={args.id}"])).metrics
    require(found, f'task "{args.id}": not found, or it has no metrics')
    message = decode(found[0].data)
    if args.format == "json":
        from google.protobuf.json_format import MessageToDict

        show_json(MessageToDict(message, preserving_proto_field_name=True))
        return
    moments = {"id": found[0].id, "timestamp": moment(found[0].timestamp)}
    listing([moments], [("ID", "id"), ("TIMESTAMP", "timestamp")])
    show("")
    listing(
        [{"metric": name, "value": value} for name, value in rows(message)],
        [("METRIC", "metric"), ("VALUE", "value")],
    )


def remove(args: argparse.Namespace) -> None:
    """Deletes tasks, or one exec; goes on after a failure."""
    with connect(args) as daemon:
        failures = Failures(daemon.address)
        for id in args.ids:
            with failures.of(id):
                _remove(daemon, id, args.exec_id, force=args.force)
    failures.check()


def _remove(daemon: Connection, id: str, exec_id: str, *, force: bool) -> None:
    from protos.containerd.services.tasks.v1 import tasks_pb2 as wire
    from protos.containerd.v1.types.task_pb2 import Status

    from ..execution import kill_and_wait
    from ..stdio.fifos import remove as remove_fifos

    process = daemon.tasks.Get(wire.GetRequest(container_id=id, exec_id=exec_id)).process
    if not force and process.status not in (Status.STOPPED, Status.CREATED):
        status = Status.Name(process.status).lower()
        raise CliError(
            f'task "{exec_id or id}" is {status}: failed precondition (--force kills it)'
        )
    if force:
        try:
            kill_and_wait(daemon, id, exec_id)
        except grpc.RpcError as error:
            if not is_code(error, "NOT_FOUND"):
                raise
    answer: Any
    if exec_id:
        answer = daemon.tasks.DeleteProcess(
            wire.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        )
    else:
        answer = daemon.tasks.Delete(wire.DeleteTaskRequest(container_id=id))
    remove_fifos((process.stdin, process.stdout, process.stderr))
    if answer.exit_status and not force:
        warn(f"{exec_id or id} had ended with exit code {answer.exit_status}")
