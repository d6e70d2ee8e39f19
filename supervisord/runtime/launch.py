"""Starts our own shims, and reaches them.

The daemon itself listens on the shim's socket before the shim exists and hands the descriptor to
the zygote's fork: so it can connect and ask at once, and a socket that refuses connections means
that its shim is dead.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Unavailable
from supervisord.contracts.workers import ShimSpawner
from supervisord.ttrpc.client import Client

from .bundle import Bundle
from .shim import CALL_SECONDS

_LONGEST = 107
_BACKLOG = 64
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, as shims are told: the state folder, the daemon's gRPC socket and the
    ttrpc socket that takes their events, the folder of the OCI runtimes' state, the log level,
    whether they run execs without the OCI runtime where they can, the longest that one of its
    commands may take (0: what the shim thinks right); how long a shim may take to answer, and the
    program of a foreign one to start it; the executables of the shims that
    the configuration names or plugins have brought, by runtime name; and what is added to the
    environment of shims."""

    state: str
    address: str
    ttrpc_address: str
    runtime_root: str
    log_level: str = "info"
    exec_by_hand: bool = True
    runtime_seconds: float = 0.0
    shim_seconds: float = CALL_SECONDS
    shims: Mapping[str, str] = field(default_factory=dict)
    shim_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def sockets(self) -> str:
        """The folder of the shims' sockets: its path is short, theirs are limited."""
        return f"{self.state}/s"

    def new_address(self) -> str:
        """The path of a shim's socket that does not exist yet."""
        return f"{self.sockets}/{secrets.token_hex(12)}"

    def prepare(self) -> None:
        """Makes the folders."""
        for path, mode in ((self.sockets, 0o700), (self.runtime_root, 0o711)):
            Path(path).mkdir(mode, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Adopt:
    """The init of a container that has lost its shim: pid, start time, and a pidfd."""

    pid: int
    start: int
    pidfd: int


class SocketPath:
    """A path for bind or connect: a long one goes through a descriptor of its folder."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _LONGEST:
            return self._path
        self._folder = os.open(Path(self._path).parent, os.O_PATH | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._folder}/{Path(self._path).name}"

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)


def listen(address: str) -> socket.socket:
    """A listening socket that only root reaches. Raises Unavailable."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with SocketPath(address) as path:
            sock.bind(path)
        Path(address).chmod(0o600)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"shim socket {address!r}: {error.strerror}") from error
    return sock


async def connect(address: str, seconds: float) -> Client:
    """Connects to a shim. Raises Unavailable when nobody listens, DeadlineExceeded."""
    if address.startswith(("unix://@", "@")):
        return await Client.connect(address, timeout=seconds)
    try:
        with SocketPath(address.removeprefix("unix://")) as path:
            return await Client.connect(path, timeout=seconds)
    except OSError as error:  # the folder of the socket is gone
        raise Unavailable(f"shim socket {address!r}: {error.strerror}") from error


class Launcher:
    """Starts shims through the zygote."""

    def __init__(self, settings: Settings, spawner: ShimSpawner, owner: TaskOwner) -> None:
        self._settings = settings
        self._spawner = spawner
        self._owner = owner

    def replenish(self) -> None:
        """A shim has got over its beginning."""
        self._spawner.replenish("shim")

    async def launch(
        self,
        bundle: Bundle,
        address: str,
        listener: socket.socket,
        runtime: str,
        adopt: Adopt | None = None,
    ) -> tuple[Client, asyncio.Task[int]]:
        """Forks a shim and connects to it, at the same time: what is sent on the connection waits
        there for the shim. Answers the connection and the fork under way, which gives the pid.
        When the fork fails the connection ends. ``listener`` is closed, at the latest then.
        With ``adopt`` the shim takes over a container before it answers.

        Raises Unavailable."""
        log = os.open(
            f"{bundle.path}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        arguments: dict[str, object] = {
            "namespace": bundle.namespace,
            "id": bundle.id,
            "bundle": bundle.path,
            "address": address,
            "publish": self._settings.ttrpc_address,
            "publish_prompt": True,
            "runtime": runtime,
            "runtime_root": self._settings.runtime_root,
            "runtime_seconds": self._settings.runtime_seconds,
            "log_level": self._settings.log_level,
            "exec_by_hand": self._settings.exec_by_hand,
            "sched_core": bool(self._settings.shim_env.get("SCHED_CORE")),
        }
        fds = [listener.fileno(), log]
        if adopt is not None:
            arguments["adopt"] = {"pid": adopt.pid, "start": adopt.start}
            fds.append(adopt.pidfd)

        async def fork() -> int:
            try:
                return await self._spawner.spawn("shim", arguments, fds)
            finally:
                os.close(log)
                listener.close()

        forking = self._owner.spawn(fork(), f"fork for {bundle.id}")
        try:
            return await connect(address, _CONNECT_SECONDS), forking
        except BaseException:
            await asyncio.wait([forking])
            raise
