"""Sandboxes: environments that containers share, held by one shim each.

A sandbox is two things. Its *record* is durable: an id, a runtime, a spec, labels and extensions,
and the name of the controller ("sandboxer") that runs it; ``SandboxStore`` keeps it. Its *instance*
is a shim that a ``SandboxController`` has started: created, then started (ready), then stopped,
then shut down, which ends the shim. A container whose record names the sandbox gets its task from
that shim. Instances outlive the daemon, never a reboot; a record outlives both.

An instance that ended by itself (its shim was killed) stays known, stopped, until it is shut down
or created anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .containers import Runtime
from .snapshots import Mount
from .tasks import Metric
from .typed import TypedValue

READY = "SANDBOX_READY"
NOT_READY = "SANDBOX_NOTREADY"
"""The states of an instance, in the words that CRI and the clients of shims know."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The record. Times are nanoseconds since the epoch, set by the store."""

    id: str
    runtime: Runtime = field(default_factory=Runtime)
    spec: TypedValue = field(default_factory=TypedValue)
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0


class SandboxStore(Protocol):
    """Durable sandbox records. Reads are synchronous, short, and never wait for a writer."""

    def get(self, namespace: str, id: str) -> Sandbox:
        """Raises NotFound."""
        ...

    def record(self, namespace: str, id: str) -> bytes:
        """The serialized ``containerd.types.Sandbox`` of one. Raises NotFound."""
        ...

    def records(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[bytes]:
        """The serialized protobufs of all that match (fields ``id``, ``labels.KEY``), in order of
        id. Raises InvalidArgument for a malformed filter."""
        ...

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Raises InvalidArgument (id, labels), AlreadyExists."""
        ...

    async def update(self, namespace: str, sandbox: Sandbox, fieldpaths: Sequence[str]) -> Sandbox:
        """Changes labels, extensions, spec and runtime (also ``labels.KEY`` and
        ``extensions.KEY``); without a path all of them, and then the runtime's name must stay.

        Raises NotFound, InvalidArgument for an immutable or unknown field."""
        ...

    async def delete(self, namespace: str, id: str) -> None:
        """Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """What an instance is created from, besides its record."""

    sandbox: Sandbox
    rootfs: Sequence[Mount] = ()
    options: TypedValue = field(default_factory=TypedValue)
    netns_path: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartedSandbox:
    """A started instance. ``address`` is ``PROTOCOL+unix://PATH`` of its shim, ``version`` that
    of the shim's task service."""

    id: str
    pid: int
    created_at: int
    address: str
    version: int
    spec: TypedValue = field(default_factory=TypedValue)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """An instance; ``info`` is filled on request, and its texts are for people."""

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    exited_at: int = 0
    extra: TypedValue = field(default_factory=TypedValue)
    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class SandboxExit:
    """How an instance ended: as a shell gives it (128 + signal), time in ns."""

    exit_status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class Platform:
    """What the containers of a sandbox run on."""

    os: str
    architecture: str
    variant: str = ""


class SandboxController(Protocol):
    """Runs the instances of one kind. Publishes /sandboxes/create, start and exit, each once.

    Where a method is not told otherwise it raises NotFound for an unknown instance, and
    Unavailable when its shim does not answer."""

    async def create(self, namespace: str, request: CreateSandbox) -> None:
        """Starts a shim and has it create the sandbox. A failure leaves nothing behind.

        Raises InvalidArgument, NotFound (runtime, network namespace), AlreadyExists, Unimplemented
        (the shim knows no sandboxes), Unknown."""
        ...

    async def start(self, namespace: str, id: str) -> StartedSandbox:
        """Makes a created sandbox ready; a failure removes the instance. Raises
        FailedPrecondition."""
        ...

    async def platform(self, namespace: str, id: str) -> Platform: ...

    async def stop(self, namespace: str, id: str, seconds: float = 0.0) -> None:
        """Ends the sandbox and what runs in it; its shim stays. ``seconds``: what its
        processes are given to end by themselves. Nothing to do for an unknown one."""
        ...

    async def wait(self, namespace: str, id: str) -> SandboxExit:
        """Returns when the sandbox has stopped or died; at once if it already has."""
        ...

    async def status(self, namespace: str, id: str, *, verbose: bool = False) -> SandboxStatus:
        """An unknown sandbox has a status without a state, which has exited now."""
        ...

    async def shutdown(self, namespace: str, id: str) -> None:
        """Deletes the tasks of the sandbox, and ends its shim."""
        ...

    async def metrics(self, namespace: str, id: str) -> Metric: ...

    async def update(
        self, namespace: str, id: str, sandbox: Sandbox, fieldpaths: Sequence[str]
    ) -> None:
        """Tells the instance that its record has changed."""
        ...
