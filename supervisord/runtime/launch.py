"""Starts our own shims, and reaches them.

The daemon itself listens on the shim's socket before the shim exists and hands the descriptor to
the zygote's fork: so it can connect and ask at once, and a socket that refuses connections means
that its shim is dead.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from supervisord.contracts.errors import Unavailable
from supervisord.contracts.workers import WorkerSpawner
from supervisord.linux import process
from supervisord.ttrpc.client import Client

from .bundle import Bundle, ShimRecord

_LONGEST = 107
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, as shims are told: the state folder, the daemon's gRPC socket and the
    ttrpc socket that takes their events, the folder of the OCI runtimes' state, the log level."""

    state: str
    address: str
    ttrpc_address: str
    runtime_root: str
    log_level: str = "info"

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

    def __init__(self, settings: Settings, spawner: WorkerSpawner) -> None:
        self._settings = settings
        self._spawner = spawner

    async def launch(
        self, bundle: Bundle, runtime: str, listener: socket.socket, undo: AsyncExitStack
    ) -> tuple[Client, ShimRecord]:
        """Forks a shim for the bundle and connects to it. ``listener`` (bound to the address in
        the bundle's record) is closed. Pushes what undoes it. Raises Unavailable."""
        record = bundle.read_record() or ShimRecord("")
        settings = self._settings
        try:
            client = await connect(record.address, 5.0)
            undo.callback(client.close)
            log = os.open(
                f"{bundle.path}/shim.log",
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
                0o600,
            )
            try:
                pid = await self._spawner.spawn(
                    "shim",
                    {
                        "namespace": bundle.namespace,
                        "id": bundle.id,
                        "bundle": bundle.path,
                        "address": record.address,
                        "publish": settings.ttrpc_address,
                        "runtime": runtime,
                        "runtime_root": settings.runtime_root,
                        "log_level": settings.log_level,
                    },
                    [listener.fileno(), log],
                )
            finally:
                os.close(log)
        finally:
            listener.close()
        return client, ShimRecord(record.address, pid=pid, start_time=process.start_time(pid) or 0)
