"""Tasks: the running processes of a container, each held by its shim.

A task is created (the runtime has set up the container, init waits), started, and ends; after
its exit it stays, stopped, until it is deleted, which returns its exit status. Execs are further
processes in it, each with an id of its own, with the same life. A task never outlives its
shim's record in the state folder, and never depends on the daemon: the daemon may die and come
back at any point in this story.

Every container is its own actor: requests to one wait for each other where the state machine
needs it, and for nobody else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .images import Descriptor
from .scope import Scope
from .snapshots import Mount
from .typed import TypedValue


class Status(enum.IntEnum):
    """The states, with their numbers on the wire (containerd.v1.types.Status)."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class Stdio:
    """Paths of FIFOs or URIs (``file://``, ``binary://``, ``fifo://``); "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class CreateTask:
    """What a task is created from, besides its container record."""

    container_id: str
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = field(default_factory=Stdio)
    checkpoint: Descriptor | None = None
    options: TypedValue = field(default_factory=TypedValue)
    runtime_path: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """The state of init (``exec_id`` "") or of an exec."""

    container_id: str
    exec_id: str
    pid: int
    status: Status
    stdio: Stdio
    exit_status: int = 0
    exited_at: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: wait status as a shell gives it (128 + signal), time in ns."""

    exec_id: str
    pid: int
    exit_status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process in a task, and what its shim knows of it."""

    pid: int
    info: TypedValue = field(default_factory=TypedValue)


@dataclass(frozen=True, slots=True)
class Metric:
    """Statistics of one task at ``timestamp`` (ns): a cgroups v1 or v2 Metrics message."""

    container_id: str
    timestamp: int
    data: TypedValue


class TaskManager(Protocol):
    """All tasks of all namespaces.

    Every method raises NotFound for an unknown container, task or exec; those that reach the
    shim raise Unavailable when it does not answer."""

    async def create(self, namespace: str, request: CreateTask) -> int:
        """Creates the task and answers the pid of init.

        Raises NotFound (container), AlreadyExists (task), InvalidArgument, Unknown (the runtime
        refused; its last error line is the message). A failure leaves nothing behind."""
        ...

    async def start(self, namespace: str, id: str, exec_id: str = "") -> int:
        """Starts init or an exec, and answers its pid. Raises FailedPrecondition."""
        ...

    async def delete(self, namespace: str, id: str) -> Exit:
        """Deletes a task that is not running, with its shim, bundle and mounts.

        Raises FailedPrecondition while it runs."""
        ...

    async def delete_process(self, namespace: str, id: str, exec_id: str) -> Exit:
        """Deletes an exec that is not running."""
        ...

    async def get(self, namespace: str, id: str, exec_id: str = "") -> Process: ...

    async def list(self, namespace: str) -> Sequence[Process]:
        """The init processes of all tasks; one whose shim does not answer in time is listed as
        UNKNOWN rather than delaying the rest."""
        ...

    async def kill(
        self, namespace: str, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None:
        """Raises NotFound when the process has already ended."""
        ...

    async def exec(
        self, namespace: str, id: str, exec_id: str, stdio: Stdio, spec: TypedValue
    ) -> None:
        """Adds an exec from an OCI process spec (JSON). Raises AlreadyExists, InvalidArgument."""
        ...

    async def resize(
        self, namespace: str, id: str, exec_id: str, width: int, height: int
    ) -> None: ...

    async def close_io(self, namespace: str, id: str, exec_id: str, *, stdin: bool) -> None: ...

    async def pause(self, namespace: str, id: str) -> None: ...

    async def resume(self, namespace: str, id: str) -> None: ...

    async def pids(self, namespace: str, id: str) -> Sequence[ProcessInfo]: ...

    async def checkpoint(
        self, scope: Scope, id: str, parent: str, options: TypedValue
    ) -> Sequence[Descriptor]:
        """What is written to the content store is kept by the scope's lease; without one, by a
        lease that ends after an hour."""
        ...

    async def update(
        self,
        namespace: str,
        id: str,
        resources: TypedValue,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Applies OCI LinuxResources (JSON); the annotations are for shims that know them."""
        ...

    async def metrics(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """Metrics of the tasks whose id matches; those whose shim fails are left out."""
        ...

    async def wait(self, namespace: str, id: str, exec_id: str = "") -> Exit:
        """Returns when the process has ended; at once if it already has."""
        ...


class LogKeeper(Protocol):
    """The log files that shims write for ``file://`` and ``cri://`` streams. The task manager
    serves it; whoever rotates logs needs no more."""

    async def reopen_logs(self, namespace: str, id: str, exec_id: str = "") -> None:
        """Goes on in new files of the same names, after somebody has moved the old ones away.
        No entry is lost or split between the two.

        Raises NotFound, FailedPrecondition (no log file, or the streams have ended), Unknown
        (the new file cannot be opened; the old one is written on), Unimplemented (a shim that
        is not ours), Unavailable."""
        ...
