"""ttrpc frames: bytes in, frames out; no socket, no clock, no task.

A frame is a header of ten bytes (big endian: u32 length of the data, u32 stream id, u8 type,
u8 flags) and its data. The format is the one of the ttrpc protocol specification, version 1.2:
streams that a client opens have odd ids, and data has at most 4 MiB.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from supervisord.contracts.errors import ResourceExhausted

HEADER: Final = struct.Struct(">IIBB")
MAX_DATA: Final = 4 << 20

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04


class Frame(NamedTuple):
    """One frame. ``oversized`` is 0, or the announced length of data that was over the maximum
    and has been thrown away (``data`` is empty then)."""

    stream_id: int
    type: int
    flags: int
    data: bytes
    oversized: int = 0


def too_large(length: int) -> ResourceExhausted:
    """The error for data of ``length`` bytes, on either side."""
    return ResourceExhausted(f"message length {length} exceed maximum message size of {MAX_DATA}")


def encode(stream_id: int, type: int, flags: int, data: bytes = b"") -> bytes:
    """One frame as bytes. Raises ResourceExhausted for data over the maximum."""
    if len(data) > MAX_DATA:
        raise too_large(len(data))
    return HEADER.pack(len(data), stream_id, type, flags) + data


class FrameReader:
    """Cuts a byte stream into frames, however it arrives."""

    __slots__ = ("_buffer", "_oversized", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # bytes of oversized data that are still to come
        self._oversized: Frame | None = None

    @property
    def pending(self) -> int:
        """Bytes held back because their frame is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Takes more bytes and answers the frames that they complete, in order.

        Oversized data is dropped as it arrives, never stored; its frame comes out when the last
        byte of it is gone, and what follows is read on."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at, end = 0, len(buffer)
        while True:
            if self._oversized is not None:
                dropped = min(self._skip, end - at)
                at += dropped
                self._skip -= dropped
                if self._skip:
                    break
                frames.append(self._oversized)
                self._oversized = None
            if end - at < HEADER.size:
                break
            length, stream_id, type, flags = HEADER.unpack_from(buffer, at)
            if length > MAX_DATA:
                at += HEADER.size
                self._skip = length
                self._oversized = Frame(stream_id, type, flags, b"", length)
                continue
            start = at + HEADER.size
            if end - start < length:
                break
            at = start + length
            frames.append(Frame(stream_id, type, flags, bytes(buffer[start:at])))
        del buffer[:at]
        return frames
