"""``sctl backup FILE``: the daemon's databases in one file, as they are at one moment."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..arguments import Noun
from ..connection import connect
from ..output import human_bytes, warn
from ..values import require

_ABOUT = """\
Copies the databases of the daemon and of its snapshotters into one tar file, as they are
at one moment, while the daemon goes on working. Blobs and snapshots themselves are not in it.

'supervisord restore FILE' brings it back."""


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(backup, _ABOUT)
    parser.add_argument("file", metavar="FILE", help="where to write it; - for stdout")


def backup(args: argparse.Namespace) -> None:
    """Writes the file; it appears whole or not at all."""
    from protos.supervisord.check.v1.check_pb2 import BackupRequest
    from protos.supervisord.check.v1.check_pb2_grpc import CheckStub

    if args.file == "-":
        require(not sys.stdout.isatty(), "backup: stdout is a terminal")
    size = 0
    with connect(args) as daemon, _target(args.file) as target:
        for message in CheckStub(daemon.channel).Backup(BackupRequest()):
            target.write(message.data)
            size += len(message.data)
    if args.file != "-":
        warn(f"{args.file}: {human_bytes(size)}")


@contextmanager
def _target(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = Path(f"{name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(name)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
