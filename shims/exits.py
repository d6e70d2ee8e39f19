"""Exit records: ``BUNDLE/exits/NAME.json``, written whole before anybody is told.

A daemon that was away, or that finds the shim gone, reads there how a process ended: a JSON object
with ``pid``, ``exit_status`` and ``exited_at_ns``. NAME is ``init`` or the id of the exec.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH104, PTH108
from __future__ import annotations

import errno
import json
import os

from . import log
from .reaper import Exit

FOLDER = "exits"


def path(bundle: str, exec_id: str) -> str:
    """Where the record of a process is. No identifier ends in ``_``, so that an exec which is
    named ``init`` has a name of its own."""
    name = {"": "init", "init": "init_"}.get(exec_id, exec_id)
    return f"{bundle}/{FOLDER}/{name}.json"


def exec_id(name: str) -> str:
    """The id of the exec whose record has this name, "" for init's."""
    return {"init": "", "init_": "init"}.get(name, name)


def write(bundle: str, exec_id: str, exit: Exit) -> None:
    """Writes a record. A failure (a full disk, a bundle that is gone) is logged, because the
    exit itself must still be told."""
    target = path(bundle, exec_id)
    record = f'{{"pid": {exit.pid}, "exit_status": {exit.status}, "exited_at_ns": {exit.at}}}'
    try:
        fd = os.open(target + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, record.encode()) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(target + ".tmp", target)
    except OSError as error:
        log.error("exit record not written", path=target, error=error)


def read(bundle: str, exec_id: str) -> Exit | None:
    """The record of a process, None where there is none."""
    try:
        with open(path(bundle, exec_id)) as file:
            record = json.load(file)
        return Exit(record["pid"], record["exit_status"], record["exited_at_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ids(bundle: str) -> list[str]:
    """The ids of all processes that have a record, "" for init."""
    try:
        names = os.listdir(f"{bundle}/{FOLDER}")  # noqa: PTH208
    except FileNotFoundError:
        return []
    return [exec_id(name.removesuffix(".json")) for name in names if name.endswith(".json")]


def remove(bundle: str, exec_id: str) -> None:
    """Removes the record of an exec whose id may be used again."""
    try:
        os.unlink(path(bundle, exec_id))
    except FileNotFoundError:
        return
