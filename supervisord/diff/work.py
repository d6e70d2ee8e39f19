"""One piece of work for an unpack worker: sends it off, and waits for what it says.

The worker answers one JSON line on a pipe and closes it. Closing our end is how it learns that
nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from supervisord.contracts.errors import Unknown, from_code
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.workers import WorkerSpawner

KIND = "unpack"
_PIECE = 1 << 20
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """The uncompressed tar that a worker read or wrote."""

    digest: str
    size: int


class Pipe:
    """The reading end of a pipe that a worker writes to."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self) -> bytes:
        """The next bytes, b"" at the end."""
        while True:
            try:
                return os.read(self._fd, _PIECE)
            except BlockingIOError:
                await self._readable()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)

    async def outcome(self) -> Outcome:
        """What the worker says at its end, on its result pipe.

        Raises what the worker raised, Unknown when it ended without a word."""
        line = b""
        while (piece := await self.read()) and len(line) < _MOST:
            line += piece
        if not line.endswith(b"\n"):
            raise Unknown("the unpack worker ended without a result")
        result = json.loads(line)
        if "error" in result:
            raise from_code(int(result["error"]["code"]), str(result["error"]["message"]))
        return Outcome(str(result["digest"]), int(result["size"]))


class Output:
    """The writing end of a pipe, to be passed to a worker and then closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """May be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@asynccontextmanager
async def flow() -> AsyncIterator[tuple[Pipe, Output]]:
    """A large pipe for what a worker writes; both ends are closed at the end."""
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    output = Output(sending)
    try:
        os.set_blocking(receiving, False)
        with contextlib.suppress(PermissionError):  # the user's pipes have used up their share
            fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, _PIECE)
        yield Pipe(receiving), output
    finally:
        output.close()
        os.close(receiving)


async def run(
    workers: WorkerSpawner, arguments: Mapping[str, object], fds: Sequence[int]
) -> Outcome:
    """Runs a worker that needs nothing on the way. The caller keeps its descriptors."""
    async with started(workers, arguments, fds) as results:
        return await results.outcome()


@asynccontextmanager
async def started(
    workers: WorkerSpawner, arguments: Mapping[str, object], fds: Sequence[int]
) -> AsyncIterator[Pipe]:
    """A worker with ``fds`` and a result pipe, which is what is yielded."""
    receiving, sending = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(receiving, False)
        try:
            await workers.spawn(KIND, arguments, [*fds, sending])
        finally:
            os.close(sending)
        yield Pipe(receiving)
    finally:
        os.close(receiving)


def describe(mounts: Sequence[Mount]) -> list[dict[str, object]]:
    """Mounts as the arguments of a worker have them."""
    return [
        {
            "type": mount.type,
            "source": mount.source,
            "options": list(mount.options),
            "target": mount.target,
        }
        for mount in mounts
    ]
