"""``sctl logs``: the log file that a container's shim writes (``--log-uri file:///...``)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc

from ..arguments import Noun
from ..connection import Connection, connect
from ..errors import is_code
from ..values import require

_BLOCK = 65536
_POLL = 0.1


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(
        logs, "Shows the log file of a container that was run with --log-uri file:///..."
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--follow", "-f", action="store_true", help="show what is added, too")
    parser.add_argument("--tail", type=int, default=-1, metavar="N", help="only the last N lines")


def logs(args: argparse.Namespace) -> None:
    """Prints the file; following ends when the container has ended."""
    with connect(args) as daemon, open(_path(daemon, args.id), "rb") as file:
        if args.tail >= 0:
            file.seek(tail_offset(file.fileno(), args.tail))
        while True:
            running = args.follow and _runs(daemon, args.id)
            while data := file.read(_BLOCK):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            if not running:
                return
            time.sleep(_POLL)


def tail_offset(fd: int, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin, read from its end."""
    end = os.fstat(fd).st_size
    if lines == 0 or end == 0:
        return end
    # A newline at the very end closes the last line; it does not begin another one.
    wanted = lines + (os.pread(fd, 1, end - 1) == b"\n")
    position = end
    while position > 0:
        start = max(0, position - _BLOCK)
        block = os.pread(fd, position - start, start)
        cut = len(block)
        while (cut := block.rfind(b"\n", 0, cut)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + cut + 1
        position = start
    return 0


def _path(daemon: Connection, id: str) -> Path:
    """The log file: what the task says, else what ``run`` noted on the container."""
    from protos.containerd.services.tasks.v1.tasks_pb2 import GetRequest

    from ..creation import LOG_LABEL
    from ..execution import get_container

    try:
        uri = daemon.tasks.Get(GetRequest(container_id=id)).process.stdout
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise
        uri = get_container(daemon, id).labels.get(LOG_LABEL, "")
    require("://" in uri, f"container {id} has no log: run it with --log-uri file:///...")
    parts = urlsplit(uri)
    require(parts.scheme == "file", f"the log of {id} is at {uri}, which sctl cannot read")
    return Path(unquote(parts.path))


def _runs(daemon: Connection, id: str) -> bool:
    from protos.containerd.services.tasks.v1.tasks_pb2 import GetRequest
    from protos.containerd.v1.types.task_pb2 import Status

    try:
        status = daemon.tasks.Get(GetRequest(container_id=id)).process.status
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            return False
        raise
    return status != Status.STOPPED
