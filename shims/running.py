"""Run records: ``BUNDLE/exits/NAME.run``, what a later shim has to know of a running process.

A JSON object with ``pid``, ``start`` (its start time in clock ticks), ``streams`` (what the client
asked for: stdin, stdout, stderr, and whether there is a terminal) and ``pipes`` (the inodes of the
pipes between the process and its shim, in the same order, 0 for none). It stands there from the
start of an exec until its deletion. NAME is as in ``exits``. ``adopt`` reads them.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH208
from __future__ import annotations

import os
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any

from . import exits, log
from .bundle import read, remove

if TYPE_CHECKING:
    from .stdio import Stdio, Wishes

_SUFFIX = ".run"


def describe(wishes: Wishes, stdio: Stdio) -> str:
    """The streams of a process as the inside of a JSON object."""
    streams = ", ".join(_quoted(uri) for uri in (wishes.stdin, wishes.stdout, wishes.stderr))
    pipes = ", ".join(str(inode) for inode in stdio.pipes)
    terminal = "true" if wishes.terminal else "false"
    return f'"streams": [{streams}, {terminal}], "pipes": [{pipes}]'


def write(bundle: str, exec_id: str, pid: int, wishes: Wishes, stdio: Stdio) -> None:
    """Notes an exec that runs. A failure is logged: only a later shim would miss it."""
    try:
        text = f'{{"pid": {pid}, "start": {started(pid)}, {describe(wishes, stdio)}}}'
        fd = os.open(_path(bundle, exec_id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended already, or the bundle is gone
    except OSError as error:
        log.warning("run record not written", exec_id=exec_id, error=error)


def forget(bundle: str, exec_id: str) -> None:
    """Removes the record of an exec whose id may be used again."""
    remove(_path(bundle, exec_id))


def all_of(bundle: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records there are, by exec id; damaged ones are left out."""
    import json

    try:
        names = sorted(os.listdir(f"{bundle}/{exits.FOLDER}"))
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(_SUFFIX):
            continue
        try:
            record = json.loads(read(f"{bundle}/{exits.FOLDER}/{name}"))
            record = {key: record[key] for key in ("pid", "start", "streams", "pipes")}
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("run record is damaged", name=name, error=repr(error))
            continue
        yield exits.exec_id(name.removesuffix(_SUFFIX)), record


def started(pid: int) -> int:
    """The start time of a process, as ``linux.process`` has it. Raises OSError."""
    return int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


def _path(bundle: str, exec_id: str) -> str:
    return f"{exits.path(bundle, exec_id).removesuffix('.json')}{_SUFFIX}"
