"""HPACK (RFC 7541): decodes header blocks, encodes without state.

A decoder belongs to one connection and follows its peer's dynamic table. Clients of ours send the
same few blocks over and over, so a block that changed nothing in the table is remembered whole.
What we send is literal or static, so our side keeps no table at all.
"""

from __future__ import annotations

from collections import deque

from . import huffman

Header = tuple[str, str]

STATIC: tuple[Header, ...] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
)
"""RFC 7541, appendix A; index 1 is the first."""

TABLE_SIZE = 4096
"""Bytes of the dynamic table that we offer to peers (the protocol's default)."""

MAX_HEADERS = 64 << 10
"""Bytes of one decoded header list, counted as the RFC does (32 more for each)."""

_ENTRY = 32
_REMEMBERED = 64
_STATIC_COUNT = len(STATIC)


class HpackError(ValueError):
    """The block cannot be decoded; the connection's state is lost."""


class HeadersTooLarge(HpackError):
    """The list is longer than MAX_HEADERS."""


class Decoder:
    """The receiving end of one connection."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size = 0
        self._limit = TABLE_SIZE
        self._remembered: dict[bytes, tuple[Header, ...]] = {}

    def decode(self, block: bytes) -> tuple[Header, ...]:
        """The header list. Raises HpackError."""
        known = self._remembered.get(block)
        if known is not None:
            return known
        headers, changed = self._decode(block)
        if changed:
            self._remembered.clear()
        elif len(self._remembered) < _REMEMBERED:
            self._remembered[block] = headers
        return headers

    def _decode(self, block: bytes) -> tuple[tuple[Header, ...], bool]:
        headers: list[Header] = []
        position, total, changed = 0, 0, False
        end = len(block)
        while position < end:
            first = block[position]
            if first & 0x80:
                index, position = _integer(block, position, 7)
                header = self._entry(index)
            elif first & 0x40:
                header, position = self._literal(block, position, 6)
                self._insert(header)
                changed = True
            elif first & 0x20:
                if headers:
                    raise HpackError("a table size update after the first header")
                size, position = _integer(block, position, 5)
                self._resize(size)
                changed = True
                continue
            else:
                header, position = self._literal(block, position, 4)
            total += len(header[0]) + len(header[1]) + _ENTRY
            if total > MAX_HEADERS:
                raise HeadersTooLarge(f"the headers take more than {MAX_HEADERS} bytes")
            headers.append(header)
        return tuple(headers), changed

    def _entry(self, index: int) -> Header:
        if 0 < index <= _STATIC_COUNT:
            return STATIC[index - 1]
        if index == 0 or index - _STATIC_COUNT > len(self._table):
            raise HpackError(f"index {index} is in no table")
        return self._table[index - _STATIC_COUNT - 1]

    def _literal(self, block: bytes, position: int, bits: int) -> tuple[Header, int]:
        index, position = _integer(block, position, bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), position

    def _insert(self, header: Header) -> None:
        self._size += len(header[0]) + len(header[1]) + _ENTRY
        self._table.appendleft(header)
        self._evict()

    def _resize(self, size: int) -> None:
        if size > TABLE_SIZE:
            raise HpackError(f"a table of {size} bytes is larger than was offered")
        self._limit = size
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """RFC 7541, section 5.1: a number in the low bits of a byte, and on in the next ones."""
    mask = (1 << bits) - 1
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        if position >= len(block) or shift > 28:
            raise HpackError("a number is cut off or too large")
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _string(block: bytes, position: int) -> tuple[str, int]:
    if position >= len(block):
        raise HpackError("a string is missing")
    coded = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise HpackError("a string is cut off")
    data = block[position:end]
    if coded:
        try:
            data = huffman.decode(data)
        except huffman.HuffmanError as error:
            raise HpackError(str(error)) from error
    return data.decode("latin-1"), end


def encode(headers: list[tuple[bytes, bytes]]) -> bytes:
    """A block of literals that no table remembers; a ``:status`` of 200 is the static one."""
    out = bytearray()
    for name, value in headers:
        if (name, value) == (b":status", b"200"):
            out.append(0x88)
            continue
        out.append(0)
        out += _length(len(name)) + name + _length(len(value)) + value
    return bytes(out)


def _length(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    out = bytearray((127,))
    value -= 127
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
