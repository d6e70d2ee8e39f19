"""One piece of work for an unpack worker: sends it off, and waits for what it says.

The worker answers one JSON line on a pipe and closes it. Cancelling the wait closes our end, which
the worker takes as its end.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supervisord.contracts.errors import Unknown, from_code
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.workers import WorkerSpawner

KIND = "unpack"
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """The uncompressed tar that a worker read or wrote."""

    digest: str
    size: int


async def run(
    workers: WorkerSpawner, arguments: Mapping[str, object], fds: Sequence[int]
) -> Outcome:
    """Runs a worker with ``fds`` and its result pipe. The caller keeps its descriptors.

    Raises what the worker says, Unknown when it ends without a word."""
    receiving, sending = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            os.set_blocking(sending, True)
            await workers.spawn(KIND, arguments, [*fds, sending])
        finally:
            os.close(sending)
        line = await _read_all(receiving)
    finally:
        os.close(receiving)
    if not line.endswith(b"\n"):
        raise Unknown("the unpack worker ended without a result")
    result = json.loads(line)
    if "error" in result:
        raise from_code(int(result["error"]["code"]), str(result["error"]["message"]))
    return Outcome(str(result["digest"]), int(result["size"]))


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


async def _read_all(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bytes] = loop.create_future()
    data = bytearray()

    def readable() -> None:
        try:
            piece = os.read(fd, 65536)
        except BlockingIOError:
            return
        data.extend(piece)
        if (not piece or len(data) > _MOST) and not found.done():
            found.set_result(bytes(data))

    loop.add_reader(fd, readable)
    try:
        return await found
    finally:
        loop.remove_reader(fd)
