"""Tar headers as they stand in the archive: v7, ustar, GNU and star blocks, and PAX records.

Formats: POSIX.1-2017 ``pax`` (ustar and extended headers), the GNU tar manual (base-256 numbers,
old sparse headers). Pure functions over one block or one record area; nothing is trusted, and
what is malformed raises DataLoss.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from zlib import adler32

from supervisord.contracts.errors import DataLoss

BLOCK = 512
ZERO = bytes(BLOCK)

_LAYOUT = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_USTAR = b"ustar\x0000"
_GNU = b"ustar  \x00"
_STAR_TRAILER = b"tar\x00"

Sparse = list[tuple[int, int]]


@dataclass(slots=True)
class Entry:
    """One member. ``size`` counts its bytes in the archive; a sparse file has ``sparse`` (offset
    and length of what is there, in order) and its full size in ``real_size``."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    linkname: bytes = b""
    atime_ns: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: Sparse | None = None
    real_size: int = 0


def parse_block(block: bytes) -> Entry:
    """An entry from its header block. Raises DataLoss."""
    (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        checksum,
        type,
        linkname,
        magic,
        _uname,
        _gname,
        major,
        minor,
        prefix,
    ) = _LAYOUT.unpack(block)
    _check_sum(block, checksum)
    name = name.partition(b"\0")[0]
    atime = 0
    if magic == _USTAR or magic[:6] == _USTAR[:6]:
        if block[508:512] == _STAR_TRAILER:
            prefix, atime = prefix[:131], _nanoseconds(number(prefix[131:143]))
        prefix = prefix.partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    elif magic == _GNU and prefix[0] and type != b"S":
        atime = _nanoseconds(number(prefix[:12]))
    entry = Entry(
        name=name,
        type=type,
        mode=number(mode) & 0o7777,
        uid=number(uid),
        gid=number(gid),
        size=number(size),
        mtime_ns=_nanoseconds(number(mtime)),
        linkname=linkname.partition(b"\0")[0],
        atime_ns=atime,
    )
    if type in b"34":
        entry.device = (number(major), number(minor))
    if entry.size < 0:
        raise DataLoss(f"layer: {name!r}: negative size in the archive")
    return entry


@lru_cache(maxsize=1 << 11)  # most owners, modes and times come again
def number(field: bytes) -> int:
    """An octal number between spaces and zeros, or a base-256 one. Raises DataLoss."""
    digits = field.rstrip(b" \0")
    if digits.isdigit():  # nearly always; the rest of this function is for the others
        try:
            return int(digits, 8)
        except ValueError:
            raise DataLoss(f"layer: {digits!r} in an archive header is no octal number") from None
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        value &= (1 << (bits - 1)) - 1  # without the marker bit
        if first & 0x40:
            value -= 1 << (bits - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise DataLoss("layer: a number in an archive header is out of range")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
        raise DataLoss(f"layer: {digits!r} in an archive header is no octal number")
    return int(digits or b"0", 8)


def _check_sum(block: bytes, field: bytes) -> None:
    wanted = number(field)
    if _sum(block[:148]) + _sum(block[156:412]) + _sum(block[412:]) + 8 * 0x20 == wanted:
        return
    signed = sum(each - 256 if each > 127 else each for each in block[:148] + block[156:])
    if signed + 8 * 0x20 != wanted:
        raise DataLoss("layer: an archive header has a wrong checksum")


def _sum(data: bytes) -> int:
    """The sum of up to 256 bytes: the lower half of an Adler-32 (RFC 1950, section 9), which is
    reached six times as fast as by ``sum``, and before its modulus matters."""
    return (adler32(data) & 0xFFFF) - 1


def _nanoseconds(seconds: int) -> int:
    return seconds * 1_000_000_000


def parse_time(text: bytes) -> int:
    """Nanoseconds from a PAX time (``1700000000.123456789``). Raises DataLoss."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 18 or (fraction and not fraction.isdigit()):
        raise DataLoss(f"layer: {text!r} is no PAX time")
    return sign * (int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0"))


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The ``LENGTH KEY=VALUE\\n`` records of a PAX header, in order. Raises DataLoss."""
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        digits = data[at:space] if space > at else b""
        if not digits.isdigit():
            raise DataLoss("layer: a PAX record has no length")
        end = at + int(digits)
        record = data[space + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(data) or end <= space + 1 or not equals or not key or record[-1:] != b"\n":
            raise DataLoss("layer: a PAX record is malformed")
        if b"\0" in key:
            raise DataLoss("layer: a PAX record is malformed")
        records.append((key, value))
        at = end
    return records
