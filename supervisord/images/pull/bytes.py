"""The bytes of a blob from a registry: in parts at once, and however often a connection is cut.

A large blob is asked for in ranges, some of them ahead of what is handed out, so that neither the
latency nor the window of one connection sets the pace. A server that knows no ranges sends it all,
which is read as it comes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import FailedPrecondition, Unavailable

from ..oci.documents import Descriptor
from ..registry.delays import delay
from ..registry.repository import Body, Repository
from .limits import Limits

Data = bytes | memoryview

PART = 4 << 20
"""Bytes of a range. What is ahead is held in memory."""

_FAST = 100_000_000
"""Bytes a second of one stream that are as good as several."""

_PIECE = 512 << 10
_WHOLE = 128 << 10
_MOST_CUTS = 5
_LEAST_PARTS = 8


async def blob_bytes(
    repository: Repository,
    descriptor: Descriptor,
    offset: int = 0,
    *,
    limits: Limits | None = None,
    ranges: int = 1,
) -> AsyncGenerator[Data, None]:
    """From ``offset`` to the end, in pieces that are worth a thread's time; ``ranges`` at a time.

    A connection that breaks is made again where it broke; the fifth one in a row that brings
    nothing is the last. Raises Unavailable, FailedPrecondition (more bytes than announced) and
    what opening raises."""
    limits = limits or Limits()
    reading = _Reading(repository, descriptor, limits)
    if ranges > 1 and descriptor.size - offset >= _LEAST_PARTS * PART:
        # The first part tells whether the server knows ranges, and whether more of them at once
        # are worth it: they cost both sides more than one stream does.
        async with aclosing(reading.span(offset, offset + PART)) as pieces:
            async for piece in pieces:
                offset += len(piece)
                yield piece
        if not reading.whole and _FAST * reading.waited > PART:
            async with aclosing(reading.ahead(offset, ranges)) as pieces:
                async for piece in pieces:
                    yield piece
            return
    async with aclosing(reading.span(offset, descriptor.size)) as pieces:
        async for piece in pieces:
            yield piece


class _Reading:
    """One blob. ``whole``: the server answered a range with everything; ``waited``: seconds that
    the network took, and not who uses the bytes."""

    def __init__(self, repository: Repository, descriptor: Descriptor, limits: Limits) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._limits = limits
        self.whole = False
        self.waited = 0.0

    async def span(self, offset: int, end: int) -> AsyncGenerator[Data, None]:
        """From ``offset`` to ``end``, which may be passed where the server knows no ranges and
        sends on: all that comes is handed out."""
        descriptor, cuts = self._descriptor, 0
        while offset < end:
            came = offset
            length = None if end == descriptor.size else end - offset
            began = time.monotonic()
            try:
                host = self._repository.reference.host
                async with (
                    self._limits.request(host),
                    self._repository.open(descriptor, offset, length) as body,
                ):
                    self.whole = self.whole or body.response.status == 200
                    if self.whole:
                        end = descriptor.size
                    async for piece in _pieces(body, offset):
                        offset += len(piece)
                        if offset > end:
                            raise FailedPrecondition(
                                f"{descriptor.digest}: the registry sends more than the"
                                f" {descriptor.size} bytes that it announced"
                            )
                        await self._limits.take(len(piece))
                        self.waited += time.monotonic() - began
                        yield piece
                        began = time.monotonic()
                if offset < end:
                    raise Unavailable(
                        f"{descriptor.digest}: the registry sent {offset} of {end} bytes"
                    )
            except Unavailable:
                cuts = 1 if offset > came else cuts + 1
                if cuts >= _MOST_CUTS:
                    raise
                await asyncio.sleep(delay(cuts))

    async def ahead(self, offset: int, ranges: int) -> AsyncGenerator[bytes, None]:
        """Parts in order, the next ones on their way."""
        owner = TaskOwner("ranges")
        parts: deque[asyncio.Task[bytes]] = deque()
        size = self._descriptor.size
        try:
            while offset < size or parts:
                while offset < size and len(parts) < ranges:
                    end = min(offset + PART, size)
                    parts.append(owner.spawn(self._part(offset, end), f"bytes {offset}-"))
                    offset = end
                yield await parts.popleft()
        finally:
            await owner.close()

    async def _part(self, offset: int, end: int) -> bytes:
        async with aclosing(self.span(offset, end)) as pieces:
            data = b"".join([piece async for piece in pieces])
        if len(data) != end - offset:
            raise Unavailable(f"{self._descriptor.digest}: the server stopped to send ranges")
        return data


async def _pieces(body: Body, offset: int) -> AsyncGenerator[Data, None]:
    """Chunks put together; what lies before ``offset`` is dropped. When the connection breaks,
    what came before is handed out first."""
    skip = offset - body.offset
    waiting: list[Data] = []
    size = 0
    try:
        async for chunk in body.chunks():
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            if skip:
                chunk, skip = chunk[skip:], 0
            if not waiting and len(chunk) >= _WHOLE:
                yield chunk
                continue
            waiting.append(chunk)
            size += len(chunk)
            if size >= _PIECE:
                yield b"".join(waiting)
                waiting.clear()
                size = 0
    except Unavailable:
        if waiting:
            yield b"".join(waiting)
        raise
    if waiting:
        yield b"".join(waiting)
