"""Takes over a container whose shim has died, while its init lives on.

The new shim is no parent of the container's processes: it watches them by pidfd, and has their
exit status from the kernel where that tells (Linux 6.15), or from the zombie; else it is 255. The
pipes that led to the dead shim are opened again by way of the processes that hold their other
ends, so output goes on where it stopped. What cannot be had again: a terminal, whose master died
with the shim, and the input of a process that was waiting for some when it ended.

Called by ``service`` before it serves. All it knows is in the bundle: ``runtime.json``, the run
and exit records, and the runtime's own state.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH115, PTH208
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supervisord.contracts.errors import Error, FailedPrecondition
from supervisord.linux import cgroups
from supervisord.linux.process import exit_status, pidfd_open, pidfd_send_signal

from . import exits, log, running
from .bundle import Bundle, read
from .container import SIGKILL, Container, Publish, observe
from .create import Defaults
from .loop import READ, Loop
from .machine import Event
from .process import Process
from .reaper import Exit, Reaper
from .runtime import Runtime
from .start import finish
from .stdio import Stdio, Wishes

UNKNOWN = 255
"""The exit status of a process of which nobody can tell how it ended."""

_STATUS_TRIES = 40
_STATUS_PAUSE = 0.005

_EVENTS: Mapping[str, Sequence[Event]] = {
    "created": (),
    "running": (Event.START, Event.STARTED),
    "paused": (Event.START, Event.STARTED, Event.PAUSE, Event.PAUSE_DONE),
}
"""How init's machine comes to where the runtime says that the container is."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A container without a shim: its bundle, and its init by pid, start time and pidfd."""

    id: str
    bundle: str
    pid: int
    start: int
    pidfd: int


async def adopt(
    loop: Loop, reaper: Reaper, defaults: Defaults, orphan: Orphan, publish: Publish
) -> Container:
    """The container, watched and with its streams moving.

    Raises FailedPrecondition where it cannot be taken over, Unknown (the runtime's words)."""
    notes = _notes(orphan)
    runtime = Runtime(
        loop,
        reaper,
        notes["binary"],
        notes["root"],
        orphan.bundle,
        notes["systemd_cgroup"],
        defaults.seconds,
    )
    state = await runtime.state(orphan.id)
    status, pid = str(state.get("status")), state.get("pid")
    if status not in _EVENTS or pid != orphan.pid:
        raise FailedPrecondition(
            f"the runtime says that container {orphan.id} is {status!r} with pid {pid}"
        )
    if status == "created" and runtime.name == "runc" and _has_begun(runtime, orphan):
        status = "running"
    init = _process(loop, reaper, "", notes)
    init.id = orphan.id
    owner = (int(notes["owner"][0]), int(notes["owner"][1]))
    container = Container(
        loop,
        reaper,
        orphan.id,
        defaults.namespace,
        Bundle(orphan.bundle),
        runtime,
        init,
        publish,
        owner,
    )
    container.found(observe(orphan.pid))
    for event in _EVENTS[status]:
        init.machine.feed(event)
    init.pidfd = orphan.pidfd
    _watch(loop, init, container.init_exited)
    records = dict(running.all_of(orphan.bundle))
    _resume(container, init, records.pop("", notes))
    for exec_id, record in records.items():
        _adopt_exec(container, exec_id, record)
    for exec_id in exits.ids(orphan.bundle):
        if exec_id and exec_id not in container.execs:
            _adopt_exec(container, exec_id, _UNRECORDED)
    _end_unknown(container)
    log.info("container has a new shim", id=orphan.id, status=status, execs=len(container.execs))
    return container


_UNRECORDED = {"pid": 0, "start": 0, "streams": ["", "", "", False], "pipes": [0, 0, 0]}
"""An exec that had ended before it could be noted."""


def _has_begun(runtime: Runtime, orphan: Orphan) -> bool:
    """Whether the dead shim had let init go. Raises FailedPrecondition."""
    try:
        return finish(runtime.root, orphan.id, orphan.pid)
    except OSError as error:
        raise FailedPrecondition(f"init of container {orphan.id}: {error!r}") from error


def _notes(orphan: Orphan) -> dict[str, Any]:
    """What the dead shim has noted. Raises FailedPrecondition."""
    try:
        notes = json.loads(read(f"{orphan.bundle}/runtime.json"))
        needed = ("binary", "root", "systemd_cgroup", "owner", "streams", "pipes")
        found = {key: notes[key] for key in needed}
        if running.started(orphan.pid) != orphan.start:
            raise FailedPrecondition(f"init of container {orphan.id} has ended")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FailedPrecondition(f"container {orphan.id}: {error!r}") from error
    return found


def _process(loop: Loop, reaper: Reaper, exec_id: str, record: Mapping[str, Any]) -> Process:
    wishes = Wishes(*record["streams"])
    return Process(loop, exec_id, wishes, Stdio(loop, reaper, wishes), is_exec=bool(exec_id))


def _adopt_exec(container: Container, exec_id: str, record: Mapping[str, Any]) -> None:
    process = _process(container.loop, container.reaper, exec_id, record)
    process.pid = record["pid"]
    for event in (Event.START, Event.STARTED):
        process.machine.feed(event)
    container.execs[exec_id] = process
    exit = exits.read(container.bundle.path, exec_id)
    if exit is None:
        try:
            process.pidfd = pidfd_open(process.pid)
            if running.started(process.pid) == record["start"]:
                _watch(container.loop, process, lambda exit: container.exec_exited(process, exit))
                _resume(container, process, record)
                return
        except OSError as error:
            log.debug("exec is gone", exec_id=exec_id, error=error)
        _close_pidfd(process)
        exit = Exit(process.pid, UNKNOWN, time.time_ns())
    process.pid = exit.pid
    container.exec_exited(process, exit)  # again, perhaps: nobody knows whether it was told


def _end_unknown(container: Container) -> None:
    """Kills execs that were started and not noted: nobody was told of them. Whatever else is in a
    pid namespace has its parent there."""
    if not container.private_pids:
        return
    known = {process.pid for process in container.execs.values()} | {container.init.pid}
    inside = set(_pids(container, container.init))
    for pid in inside - known:
        try:
            pidfd = pidfd_open(pid)
        except OSError:
            continue
        try:
            parent = int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
            if parent not in inside:
                log.warning("ending an exec that nobody knows", pid=pid)
                pidfd_send_signal(pidfd, SIGKILL)
        except OSError as error:
            log.debug("process is gone", pid=pid, error=error)
        finally:
            os.close(pidfd)


# Ends ---------------------------------------------------------------------------------------


def _watch(loop: Loop, process: Process, ended: Callable[[Exit], None]) -> None:
    def ready(_: int) -> None:
        loop.unwatch(process.pidfd)
        loop.spawn(_tell(loop, process, ended), "end of a process")

    loop.watch(process.pidfd, READ, ready)


async def _tell(loop: Loop, process: Process, ended: Callable[[Exit], None]) -> None:
    """Its parent may be about to take the status, after which the kernel tells."""
    at = time.time_ns()
    status = exit_status(process.pidfd, process.pid)
    for _ in range(_STATUS_TRIES):
        if status is not None:
            break
        await loop.sleep(_STATUS_PAUSE)
        status = exit_status(process.pidfd, process.pid)
    ended(Exit(process.pid, UNKNOWN if status is None else status, at))
    _close_pidfd(process)


def _close_pidfd(process: Process) -> None:
    if process.pidfd >= 0:
        os.close(process.pidfd)
        process.pidfd = -1


# Streams ------------------------------------------------------------------------------------


def _resume(container: Container, process: Process, record: Mapping[str, Any]) -> None:
    stdin, stdout, stderr, terminal = record["streams"]
    if terminal:
        log.warning("a terminal ended with its shim", id=process.id)
        return
    ends = _ends(_pids(container, process), {inode for inode in record["pipes"] if inode})
    for field, uri, inode in (
        ("stdin", stdin, record["pipes"][0]),
        ("stdout", stdout, record["pipes"][1]),
        ("stderr", stderr, record["pipes"][2]),
    ):
        path = ends.get(inode)
        if path is None:
            continue
        mode = os.O_WRONLY if field == "stdin" else os.O_RDONLY
        try:
            fd = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.warning("stream is lost", id=process.id, stream=field, error=error)
            continue
        if field == "stdin":
            process.stdio.resume_stdin(fd)
        else:
            process.stdio.resume(uri, field, fd)


def _pids(container: Container, process: Process) -> Sequence[int]:
    """Where the ends may be: the process, and after it all others of the container."""
    try:
        others = cgroups.pids(container.cgroup) if container.cgroup is not None else []
    except Error as error:
        log.debug("processes are not known", id=container.id, error=error)
        others = []
    return [process.pid, *others]


def _ends(pids: Iterable[int], inodes: set[int]) -> dict[int, str]:
    """A path for each of the pipes, by way of a process that has it open."""
    names = {f"pipe:[{inode}]": inode for inode in inodes}
    found: dict[int, str] = {}
    for pid in pids:
        if len(found) == len(names):
            break
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                inode = names.get(os.readlink(path))
                if inode is not None:
                    found.setdefault(inode, path)
        except OSError as error:  # it has ended
            log.debug("no descriptors", pid=pid, error=error)
    return found
