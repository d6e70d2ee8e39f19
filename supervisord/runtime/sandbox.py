"""One sandbox instance: its bundle, the way to its shim, and how it ended.

Only ``sandboxes`` and ``sandbox_creation`` change it. Whoever waits for its end waits here, across
lost connections.
"""

from __future__ import annotations

import asyncio

from supervisord.contracts.errors import DeadlineExceeded, Unavailable
from supervisord.contracts.sandboxes import CreateSandbox, SandboxExit
from supervisord.linux import process

from .bundle import Bundle, ShimRecord
from .groups import SANDBOX
from .launch import connect
from .sandbox_shim import SandboxShim
from .shim import CONNECT_SECONDS

KILLED = 137
"""The exit status of a sandbox whose shim went away unasked: 128 + SIGKILL."""


class Instance:
    """State of one sandbox."""

    def __init__(self, bundle: Bundle, record: ShimRecord, shim: SandboxShim | None = None) -> None:
        self.bundle = bundle
        self.record = record
        self.exit: SandboxExit | None = None
        self.is_gone = False
        """Whether it has been shut down."""
        self.unclaimed: CreateSandbox | None = None
        """The request whose caller went away before the sandbox was made; None once it is used."""
        self._shim = shim
        self._connecting = asyncio.Lock()
        self._ended: asyncio.Future[SandboxExit] = asyncio.get_running_loop().create_future()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and id."""
        return self.bundle.namespace, self.bundle.id

    @property
    def id(self) -> str:
        """The id of the sandbox."""
        return self.bundle.id

    @property
    def group(self) -> tuple[str, str]:
        """The name of its group (``groups``), and its own as a member: no task has such an id."""
        return self.bundle.namespace, SANDBOX + self.bundle.id

    def is_alive(self) -> bool:
        """Whether its shim's process is there."""
        return process.alive(self.record.pid, self.record.start_time)

    async def reach(self) -> SandboxShim:
        """Its shim, connected again where the connection was lost. Raises Unavailable."""
        async with self._connecting:
            if self._shim is None or self._shim.is_lost:
                try:
                    client = await connect(self.record.address, CONNECT_SECONDS)
                except (Unavailable, DeadlineExceeded) as error:
                    raise Unavailable(f"sandbox {self.id}: its shim does not answer") from error
                self._shim = SandboxShim(client, *self.key, self.record)
            return self._shim

    def end(self, exit: SandboxExit) -> None:
        """It has ended; whoever waits is answered."""
        self.exit = exit
        if not self._ended.done():
            self._ended.set_result(exit)

    async def wait(self) -> SandboxExit:
        """Waits for its end."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        """Drops the connection; shim and sandbox live on."""
        if self._shim is not None:
            self._shim.close()
