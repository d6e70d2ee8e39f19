"""Turns a descriptor with a layer into chunks of its uncompressed bytes.

gzip goes through ISA-L (all members, checksums verified), zstd through libzstd (all frames), both
without the GIL and with bounded output per step, so that a decompression bomb costs time, not
memory. Runs in a worker's own thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import IO, cast

import zstandard
from isal import igzip_lib

from supervisord.contracts.errors import DataLoss

from .frames import ZstdFrames

READ = 256 << 10
OUTPUT = 512 << 10

_LEAST = 8 << 10
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 1 << 27
_ISAL_ERROR = cast(type[Exception], igzip_lib.error)


class Source:
    """Reads a descriptor from its start: a file by offset (others may share its position), a pipe
    as it comes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0
        self._peeked = b""
        self.ended = False
        """Whether there was nothing left to read."""
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if self._regular:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read(self, size: int = READ) -> bytes:
        """Some bytes, at most ``size``; b"" at the end."""
        if self._peeked:
            data, self._peeked = self._peeked[:size], self._peeked[size:]
            return data
        if self._regular:
            data = os.pread(self._fd, size, self._offset)
            self._offset += len(data)
        else:
            data = os.read(self._fd, size)
        self.ended = not data
        return data

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes (fewer at the end), which ``read`` answers again."""
        found = b""
        while len(found) < count and (data := self.read()):
            found += data
        self._peeked = found + self._peeked
        return found[:count]


def detect(start: bytes) -> str:
    """``gzip``, ``zstd`` or ``none`` by the first bytes of a stream."""
    if start.startswith(_GZIP):
        return "gzip"
    skippable = len(start) >= 4 and start[0] & 0xF0 == 0x50 and start[1:4] == b"\x2a\x4d\x18"
    return "zstd" if skippable or start.startswith(_ZSTD) else "none"


def chunks(source: Source, compression: str) -> Iterator[bytes]:
    """The uncompressed stream; ``compression`` is ``none``, or else the first bytes decide.

    Raises DataLoss for corrupt or cut off data, OSError."""
    kind = "none" if compression == "none" else detect(source.peek(10))
    if kind == "gzip":
        return _coalesced(_gunzip(source))
    if kind == "zstd":
        return _unzstd(source)
    return iter(source.read, b"")


def _gunzip(source: Source) -> Iterator[bytes]:

    buffer, at = source.read(), 0
    while True:
        inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        size = _LEAST  # archives of thousands of small members must not copy the rest each time
        while not inflate.eof:
            piece = b""
            if inflate.needs_input:
                if at >= len(buffer):
                    buffer, at = source.read(), 0
                    if not buffer:
                        raise DataLoss("layer: the gzip stream is cut off")
                piece = buffer[at : at + size]
                at += len(piece)
                size = min(2 * size, READ)
            try:
                data = inflate.decompress(piece, OUTPUT)
            except _ISAL_ERROR as error:
                raise DataLoss(f"layer: corrupt gzip data: {error}") from error
            if data:
                yield data
        at -= len(inflate.unused_data)
        while (start := buffer[at : at + 2].lstrip(b"\0")) == b"":  # padding is permitted
            at += 2
            if at >= len(buffer):
                buffer, at = source.read(), 0
                if not buffer:
                    return
        if start != _GZIP[: len(start)]:
            raise DataLoss("layer: there is data behind the end of the gzip stream")
        at += len(buffer[at : at + 2]) - len(start)


def _unzstd(source: Source) -> Iterator[bytes]:
    frames = ZstdFrames(source.read)
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    reader = context.stream_reader(cast(IO[bytes], frames), read_size=READ, read_across_frames=True)
    try:
        while data := reader.read(OUTPUT):
            yield data
    except zstandard.ZstdError as error:
        raise DataLoss(f"layer: corrupt zstd data: {error}") from error
    if not frames.complete:
        raise DataLoss("layer: the zstd stream is cut off")


def _coalesced(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Puts small pieces together, because every chunk costs a turn of three threads."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > OUTPUT and waiting:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(piece)
        size += len(piece)
        if size >= OUTPUT // 2:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
