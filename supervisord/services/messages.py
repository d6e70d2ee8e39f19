"""gRPC over HTTP/2 as text and bytes: message framing, headers, statuses, timeouts.

The rules are those of gRPC's "over HTTP2" protocol page. No sockets, no state but a stream's bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from functools import lru_cache

from supervisord.contracts.errors import ResourceExhausted

from .http2.hpack import Header, encode

INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13

_PREFIX = struct.Struct(">BI")
_MAX_MESSAGE = 8192
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}
_CONTENT_TYPE = (b"content-type", b"application/grpc")

HEADERS = encode([(b":status", b"200"), _CONTENT_TYPE])
"""The block that begins every response."""

OK = encode([(b"grpc-status", b"0")])
"""The trailers of a call that went well."""


class Malformed(Exception):
    """What a peer sent cannot be read; ``code`` is the status that says so."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class TooLarge(ResourceExhausted):
    """A reply is larger than may be sent."""


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    return _PREFIX.pack(0, len(message)) + message


def status(code: int, message: str) -> bytes:
    """The trailers of a call that failed."""
    if code == 0:
        return OK
    return encode([(b"grpc-status", b"%d" % code), (b"grpc-message", _escaped(message))])


def only_status(code: int, message: str) -> bytes:
    """A whole response that has no messages: headers and status in one block."""
    return HEADERS + status(code, message)


def not_grpc(http_status: bytes) -> bytes:
    """The answer to a request that is none of gRPC's."""
    return encode([(b":status", http_status)])


def _escaped(message: str) -> bytes:
    """Percent-encoded where gRPC demands it, and cut to what headers may hold."""
    data = message.encode("utf-8", "replace")[:_MAX_MESSAGE]
    if all(byte in _PLAIN for byte in data):
        return data
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in data)


@lru_cache(maxsize=256)
def seconds(timeout: str) -> float:
    """A grpc-timeout in seconds. Raises Malformed."""
    match = _TIMEOUT.match(timeout)
    if match is None:
        raise Malformed(INTERNAL, f"malformed grpc-timeout {timeout[:32]!r}")
    return int(match[1]) * _UNITS[match[2]]


def metadata(headers: tuple[Header, ...]) -> list[tuple[str, str | bytes]]:
    """What a client sent along, with binary values decoded; malformed ones are left out."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name.startswith((":", "grpc-")):
            continue
        if not name.endswith("-bin"):
            found.append((name, value))
            continue
        for part in value.split(","):
            try:
                found.append((name, base64.b64decode(part + "=" * (-len(part) % 4))))
            except binascii.Error:
                continue
    return found


class MessageReader:
    """Cuts the bytes of one stream into messages. ``limit`` is the largest one in bytes."""

    def __init__(self, limit: int, encoding: str) -> None:
        self._limit = limit
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises Malformed."""
        if not self._buffer and len(data) >= 5:
            compressed, size = _PREFIX.unpack_from(data)
            if not compressed and size == len(data) - 5 and size <= self._limit:
                return [data[5:]]  # one frame, one message: nearly always
        self._buffer += data
        found: list[bytes] = []
        position = 0
        while len(self._buffer) - position >= 5:
            compressed, size = _PREFIX.unpack_from(self._buffer, position)
            if size > self._limit:
                raise self._too_large(size)
            end = position + 5 + size
            if len(self._buffer) < end:
                break
            message = bytes(memoryview(self._buffer)[position + 5 : end])
            found.append(self._inflated(message) if compressed else message)
            position = end
        del self._buffer[:position]
        return found

    def _inflated(self, message: bytes) -> bytes:
        if self._encoding not in ("gzip", "deflate"):
            raise Malformed(UNIMPLEMENTED, f"unsupported compression {self._encoding!r}")
        inflater = zlib.decompressobj(wbits=31 if self._encoding == "gzip" else 15)
        try:
            data = inflater.decompress(message, self._limit + 1)
        except zlib.error as error:
            raise Malformed(INTERNAL, f"the message cannot be inflated: {error}") from error
        if len(data) > self._limit:
            raise self._too_large(len(data))
        if not inflater.eof:
            raise Malformed(INTERNAL, "the compressed message is cut off")
        return data

    def _too_large(self, size: int) -> Malformed:
        return Malformed(
            RESOURCE_EXHAUSTED,
            f"received message larger than max ({size} vs. {self._limit})",
        )
