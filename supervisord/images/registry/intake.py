"""The body of a large answer, received into large buffers.

aiohttp reads the head; from then on a blob's bytes need no parser: its stream would copy each of
them four times, in pieces of a few KiB, on the event loop. So its connection is taken over, with or
without TLS, and not given back: it ends with the body. ``Body`` decides which answers are worth it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from supervisord.contracts.errors import Unavailable

from .http import aiohttp

SIZE = 1 << 20
"""Bytes of a buffer; one is filled while another one is used."""

_WORTH = 512 << 10


async def received(
    response: aiohttp.ClientResponse, size: int, stall: float
) -> AsyncGenerator[bytes | memoryview, None]:
    """``size`` bytes of a body that has not been read from yet, in pieces of at most ``SIZE``.
    ``stall``: seconds without any byte until the connection counts as dead.

    Raises Unavailable where it is cut or stalls, after all that came before."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    if transport is None:
        data = await response.content.read()  # it came together with the head
        yield data
        return
    early = []
    while piece := response.content.read_nowait():
        early.append(piece)
    size -= sum(map(len, early))
    transport.pause_reading()
    intake = _Intake(transport, size, stall)
    transport.set_protocol(intake)
    transport.resume_reading()
    for piece in early:
        yield piece
    try:
        while size > 0:
            filled = await intake.next()
            size -= len(filled)
            yield filled
    finally:
        intake.end()


class _Intake(asyncio.BufferedProtocol):
    """Receives ``left`` bytes, at most a buffer ahead of who uses them."""

    def __init__(self, transport: asyncio.Transport, left: int, stall: float) -> None:
        self._transport = transport
        self._left = left
        self._stall = stall
        self._buffer = bytearray(min(SIZE, left))
        self._filled = 0
        self._came = 0
        self._changed: asyncio.Future[None] | None = None
        self._gone: str | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def next(self) -> memoryview:
        """What has come, once it is worth it. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        while self._filled < min(_WORTH, self._left) and self._gone is None:
            self._changed = loop.create_future()
            self._watch = loop.call_later(self._stall, self._stalled, self._came)
            try:
                await self._changed
            finally:
                self._watch.cancel()
                self._changed = None
        if not self._filled:
            raise Unavailable(f"{self._gone or 'the connection was closed'}")
        found = memoryview(self._buffer)[: min(self._filled, self._left)]
        self._left -= len(found)
        self._filled = 0
        self._buffer = bytearray(min(SIZE, self._left))
        if self._left:
            self._transport.resume_reading()
        return found

    def end(self) -> None:
        """Nothing more is wanted."""
        self._gone = "it is not wanted any more"
        if self._watch is not None:
            self._watch.cancel()

    def _stalled(self, came: int) -> None:
        if self._came != came:
            self._watch = asyncio.get_running_loop().call_later(
                self._stall, self._stalled, self._came
            )
            return
        self._over(f"nothing came for {self._stall:g} s")

    def _over(self, why: str) -> None:
        if self._gone is None:
            self._gone = why
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # asyncio's side ------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio. Reading is paused while the buffer is full; what TLS brings besides, when
        it has decrypted more than there is room for, makes the buffer larger."""
        if self._filled == len(self._buffer):
            self._buffer = self._buffer + bytearray(max(sizehint, 16 << 10))
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        self._filled += nbytes
        self._came += nbytes
        if self._filled >= len(self._buffer) or self._filled >= self._left:
            self._transport.pause_reading()
        if self._filled >= min(_WORTH, self._left):
            self._wake()

    def eof_received(self) -> None:
        """See asyncio."""
        self._over("the server ended it early")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._over(str(exc) if exc else "the connection was closed")
