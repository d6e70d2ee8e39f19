"""``sctl logs``: the log file that a container's shim writes (``--log-uri file:///...``).

A log in kubelet's format (``cri:///...``) is shown as what the container wrote, each stream on its
own. Following goes on in the new file when a log is rotated.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
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
        logs, "Shows the log of a container that was run with --log-uri file:///... or cri:///..."
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--follow", "-f", action="store_true", help="show what is added, too")
    parser.add_argument("--tail", type=int, default=-1, metavar="N", help="only the last N lines")
    parser.add_argument(
        "--raw", action="store_true", help="show the entries of cri:/// as they are"
    )


def logs(args: argparse.Namespace) -> None:
    """Prints the file; following ends when the container has ended."""
    with connect(args) as daemon:
        scheme, path = _find(daemon, args.id)
        show = Entries().show if scheme == "cri" and not args.raw else _show
        file: BinaryIO = path.open("rb")
        try:
            if args.tail >= 0:
                file.seek(tail_offset(file.fileno(), args.tail))
            while True:
                running = args.follow and _runs(daemon, args.id)
                successor = _successor(path, file)
                _copy(file, show)
                if successor is not None:
                    file.close()
                    file = successor
                elif not running:
                    return
                else:
                    time.sleep(_POLL)
        finally:
            file.close()


def _copy(file: BinaryIO, show: Callable[[bytes], None]) -> None:
    while data := file.read(_BLOCK):
        show(data)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.flush()


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)


def _successor(path: Path, file: BinaryIO) -> BinaryIO | None:
    """The file that has taken the place of a rotated one. It is looked for before the old one is
    read to its end: nobody writes there any more."""
    try:
        new = path.open("rb")
    except FileNotFoundError:
        return None
    if os.path.sameopenfile(new.fileno(), file.fileno()):
        new.close()
        return None
    return new


class Entries:
    """Shows what streams said from the entries that were written of it."""

    def __init__(self) -> None:
        self._rest = b""

    def show(self, data: bytes) -> None:
        """Takes any piece of a log; whole entries are shown."""
        *entries, self._rest = (self._rest + data).split(b"\n")
        for entry in entries:
            _, stream, tag, text = (*entry.split(b" ", 3), b"", b"", b"")[:4]
            if stream in (b"stdout", b"stderr") and tag in (b"F", b"P"):
                target = sys.stderr if stream == b"stderr" else sys.stdout
                target.buffer.write(text + (b"\n" if tag == b"F" else b""))
            else:  # cut by a full disk
                sys.stdout.buffer.write(entry + b"\n")


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


def _find(daemon: Connection, id: str) -> tuple[str, Path]:
    """The scheme and the log file: what the task says, else what ``run`` noted on the container."""
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
    readable = parts.scheme in ("file", "cri")
    require(readable, f"the log of {id} is at {uri}, which sctl cannot read")
    return parts.scheme, Path(unquote(parts.path))


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
