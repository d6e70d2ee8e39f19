"""The serving end of one HTTP/2 connection: frames in, events out, and flow control both ways.

``receive`` takes whatever bytes arrived and answers what they mean; what is to be sent collects
in ``take``. Pings and settings are answered at once, so whoever owns the socket stops reading
while the peer does not read. A violation by the peer ends the connection with GOAWAY and an
``Ended`` event; one that concerns a single stream resets that stream. The rules are those of
RFC 9113; pushes, priorities and upgrades, which no gRPC client uses, are ignored or refused as it
demands.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .hpack import Decoder, Header, HeadersTooLarge, HpackError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH = 0, 1, 2, 3, 4, 5
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITIZED = 1, 1, 4, 8, 32
_MAX_STREAMS_ID, _WINDOW_ID, _FRAME_ID, _LIST_ID = 3, 4, 5, 6

DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
MAX_WINDOW = 2**31 - 1

FRAME = 1 << 20
"""Bytes in one frame that we accept."""

STREAM_WINDOW = 4 << 20
"""Bytes that a stream may be ahead of its reader."""

CONNECTION_WINDOW = 64 << 20
"""Bytes that all streams of a connection may be ahead."""

MAX_STREAMS = 8192
"""Calls that one connection may have open."""

_MAX_BLOCK = 64 << 10
_MAX_CONTINUATIONS = 32
_HEAD = struct.Struct(">IBI")
_PAIR = struct.Struct(">HI")
_WORD = struct.Struct(">I")


@dataclass(slots=True)
class Opened:
    """A stream began; ``ended`` if its request has no body."""

    stream: int
    headers: tuple[Header, ...]
    ended: bool


@dataclass(slots=True)
class Data:
    """Bytes of a request. Whoever consumes them gives their ``size`` back with ``consumed``."""

    stream: int
    data: bytes
    size: int
    ended: bool


@dataclass(slots=True)
class Reset:
    """The peer gave a stream up."""

    stream: int
    code: int


@dataclass(slots=True)
class Writable:
    """There is room to send again, on a stream or (0) on all."""

    stream: int


@dataclass(slots=True)
class Ended:
    """The connection is over; ``reason`` is empty if the peer went away as it should."""

    reason: str


Event = Opened | Data | Reset | Writable | Ended


class _Violation(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(slots=True)
class _Stream:
    send_window: int
    receive_window: int = STREAM_WINDOW
    owed: int = 0
    received_all: bool = False


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


class Connection:
    """The state of one connection."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._in = bytearray()
        self._out: list[bytes] = []
        self._preface = False
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._closing = False
        self._ended = False
        self._send_window = DEFAULT_WINDOW
        self._receive_window = CONNECTION_WINDOW
        self._owed = 0
        self._peer_window = DEFAULT_WINDOW
        self._peer_frame = DEFAULT_FRAME
        self._block: tuple[int, int, bytearray, int] | None = None
        settings = (
            (_MAX_STREAMS_ID, MAX_STREAMS),
            (_WINDOW_ID, STREAM_WINDOW),
            (_FRAME_ID, FRAME),
            (_LIST_ID, _MAX_BLOCK),
        )
        self._out.append(frame(_SETTINGS, 0, 0, b"".join(_PAIR.pack(*pair) for pair in settings)))
        grant = _WORD.pack(CONNECTION_WINDOW - DEFAULT_WINDOW)
        self._out.append(frame(_WINDOW_UPDATE, 0, 0, grant))

    # Sending -----------------------------------------------------------------------------

    def take(self) -> bytes:
        """What is to be written to the peer now."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def headers(self, stream: int, block: bytes) -> None:
        """Sends response headers."""
        if stream in self._streams:
            self._send_block(stream, block, 0)

    def trailers(self, stream: int, block: bytes) -> None:
        """Sends trailers, or headers that are all there is, and is done with the stream."""
        state = self._streams.pop(stream, None)
        if state is None:
            return
        self._send_block(stream, block, _END_STREAM)
        if not state.received_all:
            self._out.append(frame(_RST_STREAM, 0, stream, _WORD.pack(NO_ERROR)))
        self._return(state.owed)

    def send(self, stream: int, data: bytes | memoryview) -> int:
        """Sends as much of the data as the windows allow, and answers how much that is."""
        state = self._streams.get(stream)
        if state is None:
            return len(data)
        allowed = min(len(data), self._send_window, state.send_window)
        if allowed <= 0:
            return 0
        self._send_window -= allowed
        state.send_window -= allowed
        for begin in range(0, allowed, self._peer_frame):
            part = data[begin : min(begin + self._peer_frame, allowed)]
            self._out.append(_HEAD.pack(len(part) << 8 | _DATA, 0, stream))
            self._out.append(bytes(part) if isinstance(part, memoryview) else part)
        return allowed

    def room(self, stream: int) -> int:
        """Bytes that ``send`` would take now."""
        state = self._streams.get(stream)
        return 0 if state is None else min(self._send_window, state.send_window)

    def alive(self, stream: int) -> bool:
        """Whether the peer still waits for something on this stream."""
        return stream in self._streams

    def reset(self, stream: int, code: int) -> None:
        """Gives a stream up."""
        state = self._streams.pop(stream, None)
        if state is not None:
            self._out.append(frame(_RST_STREAM, 0, stream, _WORD.pack(code)))
            self._return(state.owed)

    def consumed(self, stream: int, size: int) -> None:
        """Lets the peer send that many bytes more. Grants are bundled."""
        state = self._streams.get(stream)
        if state is None:
            return  # its debt was returned when it ended
        state.owed -= size
        self._return(size)
        if state.received_all:
            return
        missing = STREAM_WINDOW - state.receive_window - state.owed
        if missing >= STREAM_WINDOW // 4:
            state.receive_window += missing
            self._out.append(frame(_WINDOW_UPDATE, 0, stream, _WORD.pack(missing)))

    def goaway(self, code: int = NO_ERROR) -> None:
        """Refuses further streams; those that are open may end."""
        if not self._closing:
            self._closing = True
            payload = _WORD.pack(self._last) + _WORD.pack(code)
            self._out.append(frame(_GOAWAY, 0, 0, payload))

    def _return(self, size: int) -> None:
        """Gives bytes back to the connection's window."""
        self._owed += size
        if self._owed >= CONNECTION_WINDOW // 8:
            self._receive_window += self._owed
            self._out.append(frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(self._owed)))
            self._owed = 0

    def _send_block(self, stream: int, block: bytes, flags: int) -> None:
        size = self._peer_frame
        if len(block) <= size:
            self._out.append(frame(_HEADERS, flags | _END_HEADERS, stream, block))
            return
        parts = [block[begin : begin + size] for begin in range(0, len(block), size)]
        self._out.append(frame(_HEADERS, flags, stream, parts[0]))
        for part in parts[1:-1]:
            self._out.append(frame(_CONTINUATION, 0, stream, part))
        self._out.append(frame(_CONTINUATION, _END_HEADERS, stream, parts[-1]))

    # Receiving ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes mean, together with those that came before."""
        events: list[Event] = []
        if self._ended:
            return events
        self._in += data
        try:
            self._frames(events)
        except _Violation as error:
            self._ended = True
            payload = _WORD.pack(self._last) + _WORD.pack(error.code) + str(error).encode()
            self._out.append(frame(_GOAWAY, 0, 0, payload))
            events.append(Ended(str(error)))
        return events

    def _frames(self, events: list[Event]) -> None:
        buffer = self._in
        position = 0
        if not self._preface:
            begin = bytes(buffer[: len(PREFACE)])
            if not PREFACE.startswith(begin):
                raise _Violation(PROTOCOL_ERROR, "the peer does not speak HTTP/2")
            if len(begin) < len(PREFACE):
                return
            self._preface = True
            position = len(PREFACE)
        end = len(buffer)
        try:
            while end - position >= 9:
                head, flags, stream = _HEAD.unpack_from(buffer, position)
                size = head >> 8
                if size > FRAME:
                    raise _Violation(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                begin_payload = position + 9
                if end - begin_payload < size:
                    break
                position = begin_payload + size
                payload = bytes(memoryview(buffer)[begin_payload:position])
                self._frame(head & 0xFF, flags, stream & 0x7FFFFFFF, payload, events)
        finally:
            del buffer[:position]

    def _frame(
        self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]
    ) -> None:
        if self._block is not None and (kind != _CONTINUATION or stream != self._block[0]):
            raise _Violation(PROTOCOL_ERROR, "a header block was interrupted")
        if kind == _DATA:
            self._on_data(flags, stream, payload, events)
        elif kind == _HEADERS:
            self._on_headers(flags, stream, payload, events)
        elif kind == _WINDOW_UPDATE:
            self._on_window(stream, payload, events)
        elif kind == _PING:
            self._on_ping(flags, stream, payload)
        elif kind == _SETTINGS:
            self._on_settings(flags, stream, payload, events)
        elif kind == _RST_STREAM:
            self._on_reset(stream, payload, events)
        elif kind == _CONTINUATION:
            self._on_continuation(flags, stream, payload, events)
        elif kind == _GOAWAY:
            self._closing = True
        elif kind == _PUSH:
            raise _Violation(PROTOCOL_ERROR, "a client pushed")
        elif kind == _PRIORITY and len(payload) != 5:
            self._refuse(stream, FRAME_SIZE_ERROR)

    def _on_data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream == 0 or stream > self._last:
            raise _Violation(PROTOCOL_ERROR, "data on a stream that was not opened")
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise _Violation(FLOW_CONTROL_ERROR, "more data than the connection's window")
        state = self._streams.get(stream)
        if state is None or state.received_all:
            self._return(size)
            if state is not None:
                self._refuse(stream, STREAM_CLOSED)
                events.append(Reset(stream, STREAM_CLOSED))
            return
        state.receive_window -= size
        state.owed += size
        if state.receive_window < 0:
            self._refuse(stream, FLOW_CONTROL_ERROR)
            events.append(Reset(stream, FLOW_CONTROL_ERROR))
            return
        ended = bool(flags & _END_STREAM)
        state.received_all = ended
        events.append(Data(stream, _unpadded(flags, payload), size, ended))

    def _on_headers(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream % 2 == 0:
            raise _Violation(PROTOCOL_ERROR, f"a client cannot open stream {stream}")
        payload = _unpadded(flags, payload)
        if flags & _PRIORITIZED:
            if len(payload) < 5:
                raise _Violation(FRAME_SIZE_ERROR, "headers without their priority")
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(stream, flags, payload, events)
        else:
            self._block = (stream, flags, bytearray(payload), 0)

    def _on_continuation(
        self, flags: int, stream: int, payload: bytes, events: list[Event]
    ) -> None:
        if self._block is None:
            raise _Violation(PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block, count = self._block
        block += payload
        if len(block) > _MAX_BLOCK or count >= _MAX_CONTINUATIONS:
            raise _Violation(ENHANCE_YOUR_CALM, "a header block without end")
        if flags & _END_HEADERS:
            self._block = None
            self._on_block(stream, first_flags, bytes(block), events)
        else:
            self._block = (stream, first_flags, block, count + 1)

    def _on_block(self, stream: int, flags: int, block: bytes, events: list[Event]) -> None:
        """The block is decoded whatever becomes of the stream: it changes the table."""
        try:
            headers = self._decoder.decode(block)
        except HeadersTooLarge as error:
            raise _Violation(ENHANCE_YOUR_CALM, str(error)) from error
        except HpackError as error:
            raise _Violation(COMPRESSION_ERROR, str(error)) from error
        ended = bool(flags & _END_STREAM)
        if stream <= self._last:
            state = self._streams.get(stream)
            if state is None:
                return  # it ended here while the peer's trailers were on their way
            if state.received_all or not ended:
                raise _Violation(PROTOCOL_ERROR, "headers in the middle of a request")
            state.received_all = True
            events.append(Data(stream, b"", 0, True))
            return
        self._last = stream
        if self._closing or len(self._streams) >= MAX_STREAMS:
            self._out.append(frame(_RST_STREAM, 0, stream, _WORD.pack(REFUSED_STREAM)))
            return
        self._streams[stream] = _Stream(self._peer_window, received_all=ended)
        events.append(Opened(stream, headers, ended))

    def _on_window(self, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _Violation(FRAME_SIZE_ERROR, "a window update of a wrong size")
        grant = _WORD.unpack(payload)[0] & 0x7FFFFFFF
        if stream == 0:
            self._send_window += grant
            if not grant or self._send_window > MAX_WINDOW:
                raise _Violation(FLOW_CONTROL_ERROR, "a window update out of range")
            events.append(Writable(0))
            return
        if stream > self._last:
            raise _Violation(PROTOCOL_ERROR, "a window for a stream that was not opened")
        state = self._streams.get(stream)
        if state is None:
            return
        state.send_window += grant
        if not grant or state.send_window > MAX_WINDOW:
            self._refuse(stream, FLOW_CONTROL_ERROR)
            events.append(Reset(stream, FLOW_CONTROL_ERROR))
            return
        events.append(Writable(stream))

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) != 8:
            raise _Violation(PROTOCOL_ERROR, "a malformed ping")
        if not flags & _ACK:
            self._out.append(frame(_PING, _ACK, 0, payload))

    def _on_settings(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream:
            raise _Violation(PROTOCOL_ERROR, "settings of a stream")
        if flags & _ACK:
            return
        if len(payload) % 6:
            raise _Violation(FRAME_SIZE_ERROR, "settings of a wrong size")
        for name, value in _PAIR.iter_unpack(payload):
            if name == _WINDOW_ID:
                if value > MAX_WINDOW:
                    raise _Violation(FLOW_CONTROL_ERROR, "an initial window out of range")
                for state in self._streams.values():
                    state.send_window += value - self._peer_window
                self._peer_window = value
                events.append(Writable(0))
            elif name == _FRAME_ID:
                if not DEFAULT_FRAME <= value < 1 << 24:
                    raise _Violation(PROTOCOL_ERROR, "a frame size out of range")
                self._peer_frame = value
        self._out.append(frame(_SETTINGS, _ACK, 0))

    def _on_reset(self, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise _Violation(FRAME_SIZE_ERROR, "a reset of a wrong size")
        if stream == 0 or stream > self._last:
            raise _Violation(PROTOCOL_ERROR, "a reset of a stream that was not opened")
        state = self._streams.pop(stream, None)
        if state is not None:
            self._return(state.owed)
            events.append(Reset(stream, _WORD.unpack(payload)[0]))

    def _refuse(self, stream: int, code: int) -> None:
        """Resets a stream for what its peer did."""
        if stream in self._streams:
            self.reset(stream, code)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _Violation(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
