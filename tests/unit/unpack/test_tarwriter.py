"""Headers as Go's archive/tar writes them, read back by two readers."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.unpack.tarwriter import Header, TarWriter

from .test_tar import read


def written(*headers: Header) -> bytes:
    pieces: list[bytes] = []
    writer = TarWriter(lambda data: pieces.append(bytes(data)))
    for header in headers:
        writer.header(header)
        pieces.append(b"x" * header.size)
        writer.pad(header.size)
    writer.end()
    return b"".join(pieces)


def test_a_plain_header() -> None:
    data = written(Header(b"a/f", mode=0o4755, uid=1, gid=2, size=3, mtime=1700000000))
    assert len(data) == 512 + 512 + 1024
    info = tarfile.TarInfo("a/f")
    info.mode, info.uid, info.gid, info.size, info.mtime = 0o4755, 1, 2, 3, 1700000000
    other = info.tobuf(tarfile.USTAR_FORMAT)
    assert (data[:148], data[156:329]) == (other[:148], other[156:329])
    assert data[329:345] == b"0000000\x000000000\x00", "which Python leaves empty"
    assert read(data)[0][1] == b"xxx"


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (b"n" * 100, 1),
        (b"n" * 101, 3),
        (b"p" * 155 + b"/" + b"n" * 100, 1),
        (b"p" * 156 + b"/" + b"n" * 99, 3),
        (b"p" * 60 + b"/" + b"q" * 60 + b"/", 1),
        ("ä".encode(), 3),
    ],
)
def test_long_names(name: bytes, blocks: int) -> None:
    data = written(Header(name))
    assert len(data) == blocks * 512 + 1024
    assert read(data)[0][0].name == name


@pytest.mark.parametrize(
    ("header", "records"),
    [
        (Header(b"f", uid=1 << 21), {"uid": "2097152"}),
        (Header(b"f", gid=(1 << 21) - 1), {}),
        (Header(b"f", mtime=-5), {"mtime": "-5"}),
        (Header(b"f", mtime=1 << 33), {"mtime": str(1 << 33)}),
        (Header(b"f", type=b"2", linkname=b"t" * 101), {"linkpath": "t" * 101}),
        (Header(b"f", records={b"SCHILY.xattr.a": b"b"}), {"SCHILY.xattr.a": "b"}),
    ],
)
def test_records(header: Header, records: dict[str, str]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(header))) as tar:
        (info,) = tar
    assert info.pax_headers == records


_names = st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n and n[-1:] != b"/")


@given(_names, _names, st.integers(0, (1 << 32) - 2), st.integers(-(1 << 40), 1 << 40))
def test_what_is_written_is_read(name: bytes, link: bytes, uid: int, mtime: int) -> None:
    headers = (
        Header(name, uid=uid, size=700, mtime=mtime),
        Header(name, type=b"2", linkname=link, records={b"SCHILY.xattr.x": os.urandom(9)}),
    )
    found = read(written(*headers))
    for (entry, data), header in zip(found, headers, strict=True):
        assert (entry.name, entry.linkname, entry.uid) == (name, header.linkname, header.uid)
        assert entry.mtime_ns == header.mtime * 10**9
        assert len(data) == header.size
