"""One ttrpc connection: it owns a socket, reads frames from it and writes frames to it.

The client and the server derive from it. All connections of a thread read into one small buffer,
which is empty again before the next one reads, so that an idle connection costs little. A writer
is let wait while the peer does not read.
"""

from __future__ import annotations

import asyncio
import threading

from .frames import Frame, FrameReader, encode

_BUFFER = 16 << 10
_buffers = threading.local()


class Connection(asyncio.BufferedProtocol):
    """Base of both ends. Subclasses take frames (``received``) and the end (``lost``)."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._writable: asyncio.Future[None] | None = None
        self._is_lost = False

    # What subclasses define ---------------------------------------------------------------

    def received(self, frame: Frame) -> None:
        """One frame has arrived."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """The connection has ended; called once."""
        raise NotImplementedError

    # What subclasses use ------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, or was told to."""
        return self._is_lost or self._transport is None or self._transport.is_closing()

    def send(self, stream_id: int, type: int, flags: int, data: bytes = b"") -> None:
        """Queues one frame; dropped where the connection has ended.

        Raises ResourceExhausted for data over the maximum."""
        frame = encode(stream_id, type, flags, data)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def drained(self) -> None:
        """Waits while the peer is behind with reading; returns at once otherwise."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def hang_up(self) -> None:
        """Ends the connection after what is queued has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.BufferedProtocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows the type
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer()

    def buffer_updated(self, nbytes: int) -> None:
        for frame in self._reader.feed(_buffer()[:nbytes]):
            self.received(frame)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self.resume_writing()
        self.lost(error)


def _buffer() -> memoryview:
    """The buffer of this thread. An event loop hands it to ``buffer_updated`` before it reads for
    anybody else."""
    try:
        view: memoryview = _buffers.view
    except AttributeError:
        view = _buffers.view = memoryview(bytearray(_BUFFER))
    return view
