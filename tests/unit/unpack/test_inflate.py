"""Decompression: formats by their first bytes, many members, and streams that are cut off."""

from __future__ import annotations

import gzip
import os
import tempfile
from typing import Any

import pytest
import zstandard

from shims.unpack.inflate import Source, chunks, detect
from supervisord.contracts.errors import DataLoss

PLAIN = os.urandom(100_000) + bytes(900_000) + b"end"


def inflate(data: bytes, compression: str = "auto") -> bytes:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return b"".join(chunks(Source(file.fileno()), compression))


def zstd(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        b"",
        b"x",
        gzip.compress(PLAIN),
        zstd(PLAIN),
        zstd(PLAIN, write_checksum=True),
        zstd(PLAIN, write_content_size=False),
    ],
    ids=["plain", "empty", "short", "gzip", "zstd", "zstd-checksum", "zstd-no-size"],
)
def test_round_trips(data: bytes) -> None:
    assert inflate(data) in (PLAIN, data)
    assert (inflate(data) == PLAIN) == (len(data) > 1)


def test_plain_where_the_type_says_so() -> None:
    data = gzip.compress(PLAIN)
    assert inflate(data, "none") == data


def test_from_a_pipe() -> None:
    receiving, sending = os.pipe()
    os.write(sending, gzip.compress(b"hello"))
    os.close(sending)
    assert b"".join(chunks(Source(receiving), "auto")) == b"hello"
    os.close(receiving)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("size", [1, 100, 20_000])
def test_many_members(compress: object, size: int) -> None:
    assert callable(compress)
    pieces = [PLAIN[at : at + size] for at in range(0, min(len(PLAIN), size * 2000), size)]
    assert inflate(b"".join(map(compress, pieces))) == b"".join(pieces)


def test_skippable_frames() -> None:
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    assert inflate(skippable + zstd(PLAIN) + skippable + zstd(b"more")) == PLAIN + b"more"


@pytest.mark.parametrize("padding", [1, 2, 511, 300_000])
def test_zeros_behind_gzip_are_padding(padding: int) -> None:
    data = gzip.compress(b"a") + bytes(padding)
    assert inflate(data) == b"a"
    assert inflate(data + gzip.compress(b"b")) == b"ab"


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("cut", [1, 4, 9, 1000, 90_000])
def test_cut_off(compress: object, cut: int) -> None:
    assert callable(compress)
    for data in (compress(PLAIN)[:-cut], compress(PLAIN) + compress(PLAIN)[:-cut]):
        with pytest.raises(DataLoss):
            inflate(data)


@pytest.mark.parametrize("junk", [b"j", b"junk", bytes(3) + b"junk junk junk junk"])
@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_trailing_junk(compress: object, junk: bytes) -> None:
    assert callable(compress)
    with pytest.raises(DataLoss):
        inflate(compress(PLAIN) + junk)


def test_corruption() -> None:
    data = bytearray(gzip.compress(PLAIN))
    data[-8] ^= 1
    with pytest.raises(DataLoss, match="corrupt gzip"):
        inflate(bytes(data))
    data = bytearray(zstd(PLAIN, write_checksum=True))
    data[-1] ^= 1
    with pytest.raises(DataLoss, match="corrupt zstd"):
        inflate(bytes(data))


def test_detection() -> None:
    assert detect(gzip.compress(b"")) == "gzip"
    assert detect(zstd(b"")) == "zstd"
    assert detect(b"\x51\x2a\x4d\x18") == "zstd"
    assert detect(b"") == detect(b"\x1f\x8b") == detect(b"ustar") == "none"
