"""What is fuzzed: functions of bytes that may raise domain errors, and nothing else.

Each also holds a property, so that a wrong answer is found as well as a crash. ``python -m
tests.fuzz`` drives them with atheris; the corpus beside them runs as unit tests without it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from unittest import mock

from shims.unpack import header
from shims.unpack.header import BLOCK, Entry
from shims.unpack.inflate import Source, chunks
from shims.unpack.paths import clean
from shims.unpack.stream import ByteStream
from shims.unpack.tar import TarReader
from supervisord.contracts.errors import Error

_MOST = 1 << 20


def block(data: bytes) -> None:
    """One header block, with a checksum that is right."""
    if len(data) < BLOCK:
        data = data.ljust(BLOCK, b"\0")
    whole = bytearray(data[:BLOCK])
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole)
    with contextlib.suppress(Error):
        entry = header.parse_block(bytes(whole))
        assert entry.size >= 0
        assert b"\0" not in entry.name


def records(data: bytes) -> None:
    """PAX records. What is accepted is written back to the same bytes."""
    with contextlib.suppress(Error):
        found = header.parse_records(data)
        assert all(key for key, _ in found)
        # The length may have leading zeros in the original.
        assert sum(len(key) + len(value) for key, value in found) <= len(data)
        for _, value in found:
            with contextlib.suppress(Error):
                header.parse_time(value)


def numbers(data: bytes) -> None:
    """Numbers of header fields and times of PAX records."""
    with contextlib.suppress(Error):
        if data[:12]:
            assert -(1 << 63) <= header.number(data[:12]) < 1 << 63 or len(data) < 12
    with contextlib.suppress(Error):
        header.parse_time(data)


def names(data: bytes) -> None:
    """Names of entries: what is clean stays so, and leads nowhere else."""
    with contextlib.suppress(Error):
        name = clean(data)
        parts = name.split(b"/")
        assert not {b"..", b"."} & set(parts)
        assert name == b"" or b"" not in parts
        assert clean(name) == name


def archive(data: bytes) -> None:
    """A whole archive, whose checksums are all taken for right. It reads the same in any chunks."""
    if not data:
        return
    size = 1 + data[0] * 5
    with mock.patch.object(header, "_check_sum"):
        assert _read(data[1:], len(data)) == _read(data[1:], size)


def _read(data: bytes, size: int) -> list[tuple[Entry, bytes]] | str:
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    reader = TarReader(ByteStream(lambda: next(pieces, b"")))
    try:
        return [(entry, b"".join(map(bytes, reader.data()))) for entry in reader]
    except Error as error:
        return error.message


def gunzip(data: bytes) -> None:
    """A gzip stream: where the standard library agrees to it, both see the same."""
    mine = _inflate(b"\x1f\x8b\x08" + data)
    try:
        wanted = gzip.GzipFile(fileobj=io.BytesIO(b"\x1f\x8b\x08" + data)).read(_MOST)
    except (EOFError, OSError, zlib.error):
        return
    if mine is not None:
        assert mine[:_MOST] == wanted


def unzstd(data: bytes) -> None:
    """A zstd stream, and frames to be skipped."""
    _inflate(b"\x28\xb5\x2f\xfd" + data)
    _inflate(b"\x50\x2a\x4d\x18" + data)


def _inflate(data: bytes) -> bytes | None:
    """The uncompressed bytes, None where they were refused."""
    found = b""
    with _memory(data) as fd, contextlib.suppress(Error):
        for chunk in chunks(Source(fd), "auto"):
            found += chunk
            if len(found) > _MOST:
                break
        return found
    return None


@contextlib.contextmanager
def _memory(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (block, records, numbers, names, archive, gunzip, unzstd)
}
