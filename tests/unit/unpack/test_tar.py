"""The tar reader: formats, limits, and that nothing but domain errors comes out of it."""

from __future__ import annotations

import contextlib
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shims.unpack.header import Entry, number, parse_records, parse_time
from shims.unpack.stream import ByteStream
from shims.unpack.tar import TarReader
from supervisord.contracts.errors import DataLoss, Error, InvalidArgument

from .archives import archive, folder, hardlink, member, symlink


def read(data: bytes, chunk: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """All entries with their contents, fed in chunks."""
    chunks = iter([data[at : at + chunk] for at in range(0, len(data), chunk)])
    reader = TarReader(ByteStream(lambda: next(chunks, b"")))
    return [(entry, b"".join(map(bytes, reader.data()))) for entry in reader]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 1 << 20])
def test_formats_in_any_chunks(format: int, chunk: int) -> None:
    data = archive(
        folder("a", uid=1, gid=2, mtime=1700000000),
        member("a/file", b"x" * 1000, mode=0o4755),
        member("a/empty"),
        symlink("a/link", "../target"),
        hardlink("a/hard", "a/file"),
        member("a/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("a/fifo", type=tarfile.FIFOTYPE),
        format=format,
    )
    found = read(data, chunk)
    names = [entry.name for entry, _ in found]
    assert names == [b"a/", b"a/file", b"a/empty", b"a/link", b"a/hard", b"a/null", b"a/fifo"] or (
        names[0] == b"a"
    )
    assert [entry.type for entry, _ in found] == [b"5", b"0", b"0", b"2", b"1", b"3", b"6"]
    top, file = found[0][0], found[1][0]
    assert (top.uid, top.gid, top.mtime_ns) == (1, 2, 1700000000 * 10**9)
    assert (file.mode, file.size, found[1][1]) == (0o4755, 1000, b"x" * 1000)
    assert found[3][0].linkname == b"../target"
    assert found[5][0].device == (1, 3)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links(format: int) -> None:
    name, target = "d/" * 200 + "ä" * 100, "t/" * 300
    ((entry, _),) = read(archive(symlink(name, target), format=format))
    assert entry.name.decode() == name
    assert entry.linkname.decode() == target


def test_ustar_prefix() -> None:
    name = "p" * 90 + "/" + "n" * 90
    ((entry, _),) = read(archive(member(name), format=tarfile.USTAR_FORMAT))
    assert entry.name.decode() == name


def test_gnu_base_256_numbers() -> None:
    big = member("f", uid=5_000_000_000, mtime=-3)
    ((entry, _),) = read(archive(big, format=tarfile.GNU_FORMAT))
    assert (entry.uid, entry.mtime_ns) == (5_000_000_000, -3 * 10**9)


def test_pax_records_override() -> None:
    headers = {
        "mtime": "1700000000.123456789",
        "atime": "1700000001.5",
        "uid": "3000000",
        "SCHILY.xattr.user.a": "b=c\n",
        "path": "other",
    }
    info, data = member("f", b"12345", pax_headers=headers)
    ((entry, found),) = read(archive((info, data)))
    assert (entry.name, entry.uid, found) == (b"other", 3000000, b"12345")
    assert entry.mtime_ns == 1700000000_123456789
    assert entry.atime_ns == 1700000001_500000000
    assert entry.xattrs == {b"user.a": b"b=c\n"}


def test_xattrs_of_bsdtar() -> None:
    """Its own form counts where the common one is not there."""
    headers = {
        "LIBARCHIVE.xattr.user.a%20b": "aGVsbG8",
        "LIBARCHIVE.xattr.user.both": "b3RoZXI=",
        "SCHILY.xattr.user.both": "this",
        "LIBARCHIVE.xattr.user.bad": "!",
    }
    ((entry, _),) = read(archive(member("f", pax_headers=headers)))
    assert entry.xattrs == {b"user.a b": b"hello", b"user.both": b"this"}


def test_times_before_1970_have_fractions() -> None:
    ((entry, _),) = read(archive(member("f", pax_headers={"mtime": "-1.25"})))
    assert entry.mtime_ns == -1_250_000_000


def test_global_headers_are_read_over() -> None:
    whole = tarfile.TarInfo.create_pax_global_header({"path": "no", "comment": "x"})
    found = read(whole + archive(member("f", b"1")))
    assert [entry.name for entry, _ in found] == [b"f"]


@pytest.mark.parametrize("end", [0, 512, 1024, 4096])
def test_ends_of_archives(end: int) -> None:
    data = archive(member("f", b"1"))[: 512 + 512]
    assert len(read(data + bytes(end))) == 1


def test_padding_may_be_missing_at_the_end() -> None:
    assert read(archive(member("f", b"abc"))[: 512 + 3])[0][1] == b"abc"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(member("f", b"abc"))[:514], "middle of a file"),
        (archive(member("f"))[:400], "middle of a header"),
        (b"\xff" * 512, "header"),
        (bytes(512) + b"x" * 512, "zero block"),
        (b"x" + archive(member("f"))[1:], "checksum"),
    ],
)
def test_malformed_archives(data: bytes, words: str) -> None:
    with pytest.raises(DataLoss, match=words):
        read(data)


def test_special_headers_have_a_limit() -> None:
    info, data = member("f", pax_headers={"comment": "x" * (1 << 20)})
    with pytest.raises(InvalidArgument, match="special header"):
        read(archive((info, data)))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
@pytest.mark.parametrize("parts", [0, 1, 3, 60])
def test_sparse_files(tmp_path: Path, arguments: list[str], parts: int) -> None:
    (tmp_path / "s").mkdir()
    path = tmp_path / "s" / "sparse"
    with open(path, "wb") as file:
        file.truncate(parts * 65536 + 65536)
        for at in range(parts):
            file.seek(at * 65536)
            file.write(bytes([at + 1]) * 4096)
    command = ["tar", "-C", str(tmp_path / "s"), "-cS", *arguments, "sparse"]
    ((entry, data),) = read(subprocess.run(command, check=True, capture_output=True).stdout, 700)
    assert entry.name == b"sparse"
    assert entry.real_size == path.stat().st_size
    whole = bytearray(entry.real_size)
    at = 0
    for offset, length in entry.sparse or [(0, len(data))]:
        whole[offset : offset + length] = data[at : at + length]
        at += length
    assert bytes(whole) == path.read_bytes()


@pytest.mark.parametrize(
    ("map", "size"),
    [("0,5,3,5", 10), ("0,5", 4), ("0,6", 20), ("8,2", 9), ("0,1,2", 3), ("x,1", 1)],
)
def test_sparse_maps_that_lie(map: str, size: int) -> None:
    headers = {"GNU.sparse.map": map, "GNU.sparse.size": str(size)}
    with pytest.raises(DataLoss):
        read(archive(member("f", b"12345", pax_headers=headers)))


@pytest.mark.parametrize(
    ("field", "expected"),
    [(b"0000644\0", 0o644), (b"   644 \0", 0o644), (b"\0" * 8, 0), (b"644\0junk", 0o644)],
)
def test_numbers(field: bytes, expected: int) -> None:
    assert number(field) == expected


@pytest.mark.parametrize("field", [b"0000_644", b"-000644 ", b"0000689\0", b"0x10\0\0\0\0"])
def test_numbers_that_are_none(field: bytes) -> None:
    with pytest.raises(DataLoss):
        number(field)


@pytest.mark.parametrize(
    "data",
    [
        *(b"6 a=b", b"5 a=b\n", b"7 a=b\n", b"6 a:b\n", b" a=b\n", b"-6 a=b\n", b"5 =b\n", b"99"),
        b"8 a\0b=c\n",
    ],
)
def test_malformed_records(data: bytes) -> None:
    with pytest.raises(DataLoss):
        parse_records(data)


@pytest.mark.parametrize("text", [b"", b"1e5", b"1.x", b"--1", b"9" * 5000])
def test_malformed_times(text: bytes) -> None:
    with pytest.raises(DataLoss):
        parse_time(text)


_SAMPLE = archive(
    folder("a"),
    member("a/f" * 60, b"contents" * 100, pax_headers={"mtime": "1.5", "GNU.sparse.map": "0,800"}),
    hardlink("b", "a"),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_SAMPLE) - 1), st.binary(min_size=1, max_size=12))))
def test_mutations_end_in_domain_errors(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(_SAMPLE)
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    with contextlib.suppress(Error):
        read(bytes(data))
