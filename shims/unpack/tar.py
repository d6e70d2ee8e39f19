"""Reads tar archives as a stream: every entry once, in order, with its contents behind it.

What is understood: v7, ustar, GNU (long names and links, base-256 numbers), PAX (long names,
sizes, times in nanoseconds, ids, ``SCHILY.xattr.*``, ``LIBARCHIVE.xattr.*``), and sparse files in
the old GNU form and the PAX forms 0.0, 0.1 and 1.0. Global PAX headers are read over, as
containerd does. Special headers are limited to 1 MiB. Nothing here touches a file system.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from supervisord.contracts.errors import DataLoss, InvalidArgument

from .header import BLOCK, ZERO, Entry, Sparse, number, parse_block, parse_records, parse_time
from .stream import ByteStream

MAX_SPECIAL = 1 << 20
MAX_SPARSE = 1 << 18

_XATTR = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_SPARSE = b"GNU.sparse."
_WITH_DATA = b"0\x007S"


class TarReader:
    """Iterate over the entries; ``data`` gives the contents of the last one, if wanted."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """Raises DataLoss (malformed, cut off), InvalidArgument (over a limit)."""
        longname = longlink = b""
        records: list[tuple[bytes, bytes]] = []
        while True:
            self._finish()
            block = self._stream.take(BLOCK)
            if self._at_end(block):
                return
            entry = parse_block(block)
            match entry.type:
                case b"x":
                    records = parse_records(self._special(entry))
                    continue
                case b"g":
                    parse_records(self._special(entry))
                    continue
                case b"L":
                    longname = self._special(entry).partition(b"\0")[0]
                    continue
                case b"K":
                    longlink = self._special(entry).partition(b"\0")[0]
                    continue
            entry.name = longname or entry.name
            entry.linkname = longlink or entry.linkname
            if entry.type == b"S":
                self._old_sparse(entry, block)
            if records:
                _apply(entry, records)
            self._begin(entry, records)
            longname = longlink = b""
            records = []
            yield entry

    def data(self) -> Iterator[memoryview]:
        """The contents of the current entry, as views that hold until the next one."""
        for piece in self._stream.pieces(self._left):
            self._left -= len(piece)
            yield piece

    def _finish(self) -> None:
        if self._left:
            self._stream.skip(self._left)
        if self._padding:
            self._stream.take(self._padding)  # some archives end without the last padding
        self._left = self._padding = 0

    def _at_end(self, block: bytes) -> bool:
        if not block:
            return True
        if len(block) < BLOCK:
            raise DataLoss("layer: the archive ends in the middle of a header")
        if block != ZERO:
            return False
        if self._stream.take(BLOCK) not in (ZERO, b""):
            raise DataLoss("layer: the archive goes on after a zero block")
        return True

    def _special(self, entry: Entry) -> bytes:
        if entry.size > MAX_SPECIAL:
            raise InvalidArgument(
                f"layer: a special header has {entry.size} bytes, more than {MAX_SPECIAL}"
            )
        data = self._stream.take(entry.size)
        if len(data) < entry.size:
            raise DataLoss("layer: the archive ends in the middle of a special header")
        self._stream.skip(-entry.size % BLOCK)
        return data

    def _begin(self, entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
        if entry.type in (b"0", b"\0") and entry.name.endswith(b"/"):
            entry.type = b"5"  # as v7 wrote directories
        if entry.type not in _WITH_DATA:
            entry.size = 0
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        if not entry.sparse:
            entry.real_size = entry.real_size or entry.size
        self._pax_sparse(entry, records)

    # Sparse files ----------------------------------------------------------------------------

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        entry.sparse = []
        entry.real_size = number(block[483:495])
        area, extended = block[386:482], block[482]
        while True:
            for at in range(0, len(area), 24):
                if area[at] == 0:
                    break
                entry.sparse.append((number(area[at : at + 12]), number(area[at + 12 : at + 24])))
            if not extended:
                break
            if len(entry.sparse) > MAX_SPARSE:
                raise InvalidArgument(f"layer: {entry.name!r} has too many sparse parts")
            more = self._stream.take(BLOCK)
            if len(more) < BLOCK:
                raise DataLoss("layer: the archive ends in the middle of a sparse header")
            area, extended = more[:504], more[504]
        _check_sparse(entry)

    def _pax_sparse(self, entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
        found = dict(each for each in records if each[0].startswith(_SPARSE))
        if not found or entry.type not in _WITH_DATA:
            return
        version = (found.get(_SPARSE + b"major", b""), found.get(_SPARSE + b"minor", b""))
        if version == (b"1", b"0"):
            entry.sparse = self._read_map(entry)
        elif version not in ((b"", b""), (b"0", b"0"), (b"0", b"1")):
            raise InvalidArgument(f"layer: {entry.name!r}: unknown sparse format")
        elif _SPARSE + b"map" in found:
            entry.sparse = _pairs(found[_SPARSE + b"map"].split(b","))
        elif _SPARSE + b"numblocks" in found:
            keys = (_SPARSE + b"offset", _SPARSE + b"numbytes")
            entry.sparse = _pairs([value for key, value in records if key in keys])
        else:
            return
        real = found.get(_SPARSE + b"realsize") or found.get(_SPARSE + b"size") or b"0"
        entry.real_size = _decimal(real)
        entry.name = found.get(_SPARSE + b"name") or entry.name
        _check_sparse(entry)

    def _read_map(self, entry: Entry) -> Sparse:
        """The map of format 1.0: decimal lines in blocks before the contents."""
        lines: list[bytes] = []
        rest = b""
        wanted = 1
        while len(lines) < wanted:
            if entry.size < BLOCK or len(lines) > 2 * MAX_SPARSE:
                raise DataLoss(f"layer: {entry.name!r} has a malformed sparse map")
            block = self._stream.take(BLOCK)
            entry.size -= BLOCK
            self._left -= BLOCK
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > BLOCK:
                raise DataLoss(f"layer: {entry.name!r} has a malformed sparse map")
            lines += whole
            if lines:
                wanted = 1 + 2 * _decimal(lines[0])
        return _pairs(lines[1:wanted])


def _apply(entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
    """Overrides header fields by PAX records; an empty value leaves the field as it is."""
    for key, value in records:
        if key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE):
            _add_libarchive(entry, key[len(_LIBARCHIVE) :], value)
        elif not value:
            continue
        elif key == b"path":
            entry.name = _text(value)
        elif key == b"linkpath":
            entry.linkname = _text(value)
        elif key == b"size":
            entry.size = _decimal(value)
        elif key == b"uid":
            entry.uid = _decimal(value)
        elif key == b"gid":
            entry.gid = _decimal(value)
        elif key == b"mtime":
            entry.mtime_ns = parse_time(value)
        elif key == b"atime":
            entry.atime_ns = parse_time(value)


def _add_libarchive(entry: Entry, name: bytes, value: bytes) -> None:
    """An xattr as bsdtar writes it, besides or instead of the other form, which is preferred: the
    name percent-encoded, the value in base64. What is not is passed over."""
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        entry.xattrs.setdefault(unquote_to_bytes(name), decoded)


def _text(value: bytes) -> bytes:
    if b"\0" in value:
        raise DataLoss("layer: a PAX path has a zero byte")
    return value


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise DataLoss(f"layer: {value[:20]!r} is no number")
    return int(value)


def _pairs(values: list[bytes]) -> Sparse:
    if len(values) % 2 or len(values) > 2 * MAX_SPARSE:
        raise DataLoss("layer: a sparse map is malformed")
    numbers = [_decimal(value) for value in values]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _check_sparse(entry: Entry) -> None:
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise DataLoss(f"layer: {entry.name!r} has a malformed sparse map")
        end = offset + length
        total += length
    if end > entry.real_size or total != entry.size:
        raise DataLoss(f"layer: {entry.name!r} has a sparse map that does not fit its size")
