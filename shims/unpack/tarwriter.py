"""Writes tar headers byte for byte as containerd's clients know them from Go's archive/tar.

A header is plain ustar where everything fits; what does not (names that cannot be split, or are
not ASCII, large numbers, times before 1970, xattrs) goes to a PAX header before it. The same
entries always give the same bytes, so a layer computed twice has one digest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .header import BLOCK

_NAME = 100
_PREFIX = 155
_LINK = 100


@dataclass(slots=True)
class Header:
    """What one entry says of itself; ``mtime`` in seconds."""

    name: bytes
    type: bytes = b"0"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: bytes = b""
    device: tuple[int, int] = (0, 0)
    records: Mapping[bytes, bytes] = field(default_factory=dict)


class TarWriter:
    """``write`` takes all bytes in order."""

    def __init__(self, write: Callable[[bytes | memoryview], None]) -> None:
        self._write = write

    def header(self, header: Header) -> None:
        """Starts an entry; ``header.size`` bytes of contents and ``pad`` must follow."""
        records = dict(header.records)
        if len(header.linkname) > _LINK or not header.linkname.isascii():
            records[b"linkpath"] = header.linkname
        for key, value, width in (
            (b"uid", header.uid, 8),
            (b"gid", header.gid, 8),
            (b"size", header.size, 12),
            (b"mtime", header.mtime, 12),
        ):
            if not _fits(value, width):
                records[key] = b"%d" % value
        prefix, name = _split(header.name)
        if records or len(name) > _NAME or not name.isascii():
            if len(header.name) > _NAME or not header.name.isascii():
                records[b"path"] = header.name
            self._pax(header.name, records)
            prefix, name = b"", header.name
        self._write(_block(header, name, prefix))

    def pad(self, size: int) -> None:
        """Fills up the last block of ``size`` bytes of contents."""
        if size % BLOCK:
            self._write(bytes(-size % BLOCK))

    def end(self) -> None:
        """Ends the archive."""
        self._write(bytes(2 * BLOCK))

    def _pax(self, name: bytes, records: Mapping[bytes, bytes]) -> None:
        data = b"".join(_record(key, records[key]) for key in sorted(records))
        folder, _, base = name.rpartition(b"/")
        parts = [part for part in (folder, b"PaxHeaders.0", base) if part]
        short = _ascii(b"/".join(parts))[:_NAME].rstrip(b"/")
        block = bytearray(BLOCK)
        _put(block, 0, _NAME, short)
        for at, width in ((100, 8), (108, 8), (116, 8), (136, 12)):
            _put(block, at, width, _octal(0, width))
        _put(block, 124, 12, _octal(len(data), 12))
        block[156:157] = b"x"
        self._write(_finished(block))
        self._write(data)
        self.pad(len(data))


def of(
    name: bytes, found: os.stat_result, linkname: bytes = b"", latest: int | None = None
) -> Header:
    """The header of a file as it was found; times end at ``latest``."""
    mtime = found.st_mtime_ns // 1_000_000_000
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    header = Header(
        name=name,
        type=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if kind == b"0" else 0,
        mtime=mtime if latest is None else min(mtime, latest),
        linkname=linkname,
    )
    if kind in (b"3", b"4"):
        header.device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    return header


def _block(header: Header, name: bytes, prefix: bytes) -> bytes:
    block = bytearray(BLOCK)
    _put(block, 0, _NAME, _ascii(name))
    _put(block, 100, 8, _octal(header.mode, 8))
    _put(block, 108, 8, _octal(header.uid, 8))
    _put(block, 116, 8, _octal(header.gid, 8))
    _put(block, 124, 12, _octal(header.size, 12))
    _put(block, 136, 12, _octal(header.mtime, 12))
    block[156:157] = header.type
    _put(block, 157, _LINK, _ascii(header.linkname))
    _put(block, 329, 8, _octal(header.device[0], 8))
    _put(block, 337, 8, _octal(header.device[1], 8))
    _put(block, 345, _PREFIX, prefix)
    return _finished(block)


def _finished(block: bytearray) -> bytes:
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _put(block: bytearray, at: int, width: int, value: bytes) -> None:
    if len(value) > width and value[width - 1 : width] == b"/":
        value = value[: width - 1].rstrip(b"/")  # or some readers take it for a directory
    value = value[:width]
    block[at : at + len(value)] = value


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value if _fits(value, width) else 0)


def _fits(value: int, width: int) -> bool:
    return 0 <= value < 1 << (3 * (width - 1))


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(each for each in text if each < 0x80)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %b=%b\n" % (key, value)
    size = len(rest) + len(b"%d" % len(rest))
    if len(b"%d" % size) + len(rest) != size:
        size += 1
    return b"%d%b" % (size, rest)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Prefix and name for ustar; no prefix where the name fits, or cannot be split."""
    if len(name) <= _NAME or not name.isascii():
        return b"", name
    end = _PREFIX + 1 if len(name) > _PREFIX + 1 else len(name) - name.endswith(b"/")
    at = name.rfind(b"/", 0, end)
    rest = len(name) - at - 1
    if at <= 0 or not 0 < rest <= _NAME:
        return b"", name
    return name[:at], name[at + 1 :]


_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
