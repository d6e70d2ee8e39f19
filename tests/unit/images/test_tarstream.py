"""Archives as streams: what Python's ``tarfile`` and GNU tar write is read, whatever the chunks."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from supervisord.contracts.errors import InvalidArgument
from supervisord.images.archive.plain import plain
from supervisord.images.archive.tarstream import TarStream


async def _chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _read(data: bytes, size: int = 1000) -> list[tuple[str, str, str, bytes]]:
    stream = TarStream(_chunks(data, size))
    found = []
    while (entry := await stream.next()) is not None:
        body = b"".join([piece async for piece in stream.body()])
        assert len(body) == entry.size
        found.append((entry.name, entry.kind, entry.link, body))
    return found


def _archive(format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, size in (("a", 0), ("folder/b", 513), ("l" * 90 + "/" + "n" * 90, 5)):
            entry = tarfile.TarInfo(name)
            entry.size = size
            tar.addfile(entry, io.BytesIO(b"x" * size))
        for kind, name in ((tarfile.SYMTYPE, "sym"), (tarfile.LNKTYPE, "hard")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "a"
            tar.addfile(entry)
    return out.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 1 << 20])
async def test_what_python_writes(format: int, size: int) -> None:
    assert await _read(_archive(format), size) == [
        ("folder/", "", "", b""),
        ("a", "file", "", b""),
        ("folder/b", "file", "", b"x" * 513),
        ("l" * 90 + "/" + "n" * 90, "file", "", b"xxxxx"),
        ("sym", "symlink", "a", b""),
        ("hard", "hardlink", "a", b""),
    ]


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes(tmp_path: Path, format: str) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "two").write_bytes(b"")
    done = subprocess.run(
        ["tar", f"--format={format}", "-C", str(tmp_path), "-c", "one", "two"],
        capture_output=True,
        check=True,
    )
    found = asyncio.run(_read(done.stdout))
    assert [(name, body) for name, _, _, body in found] == [("one", b"1" * 1000), ("two", b"")]


async def test_bodies_may_be_passed_over() -> None:
    stream = TarStream(_chunks(_archive(tarfile.PAX_FORMAT)))
    names = []
    while (entry := await stream.next()) is not None:
        names.append(entry.name[:8])
    assert names == ["folder/", "a", "folder/b", "llllllll", "sym", "hard"]
    await stream.drain()


def _changed(change: Callable[[bytearray], object]) -> bytes:
    """An archive whose first header is changed, and its checksum with it."""
    entry = tarfile.TarInfo("name")
    entry.size = 600
    block = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x" * 1024 + b"\0" * 1024


def _set(start: int, value: bytes) -> Callable[[bytearray], object]:
    return lambda block: block.__setitem__(slice(start, start + len(value)), value)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"x" * 512, "checksum"),
        (b"x" * 100, "ends in the middle"),
        (_changed(lambda block: None)[:700], "ends within a file"),
        (_changed(_set(124, b"zzzzzzzzzzz")), "is no size"),
        (_changed(_set(124, b"\xff" * 12)), "enormous size"),
        (_changed(_set(156, b"S")), "sparse files"),
        (_changed(_set(156, b"x")), "a PAX record"),
        (_changed(lambda b: (_set(156, b"x")(b), _set(124, b"77777777777")(b))), "a header of"),
    ],
)
async def test_what_is_no_archive(data: bytes, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        await _read(data)


@given(st.binary(max_size=1500), st.integers(0, 511), st.binary(min_size=1, max_size=20))
async def test_nothing_else_is_raised(data: bytes, place: int, change: bytes) -> None:
    for candidate in (data, _changed(_set(place, change[: 512 - place]))):
        try:
            await _read(candidate)
        except InvalidArgument:
            continue


_NOISE = random.Random(1).randbytes(3_000_000) + b"\0" * 3_000_000  # noqa: S311 - the same


def _two(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: pack(data[:1_000_000]) + pack(data[1_000_000:])


@pytest.mark.parametrize(
    "pack",
    [
        bytes,
        gzip.compress,
        _two(gzip.compress),
        zstandard.compress,
        _two(zstandard.compress),
        lambda data: gzip.compress(data) + b"\0" * 1000,
    ],
)
async def test_compressed_or_not(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(_NOISE)
    assert b"".join([piece async for piece in plain(_chunks(packed, 32 << 10))]) == _NOISE


async def test_a_bomb_is_not_held_in_memory() -> None:
    packed = gzip.compress(b"\0" * (64 << 20))
    sizes = [len(piece) async for piece in plain(_chunks(packed))]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
async def test_damaged(pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(_NOISE[:2_000_000]))
    packed[4:24] = b"\xff" * 20
    with pytest.raises(InvalidArgument, match=r"archive: damaged|ends in the middle"):
        async for _ in plain(_chunks(bytes(packed), 32 << 10)):
            pass


async def test_a_gzip_that_ends_early() -> None:
    packed = gzip.compress(_NOISE)
    with pytest.raises(InvalidArgument, match="ends in the middle"):
        async for _ in plain(_chunks(packed[:-1000])):
            pass
