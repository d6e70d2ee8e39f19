"""Image archives, well-meant and hostile."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord.cli.errors import CliError
from supervisord.cli.images import archive


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """A tar of files (bytes) and symlinks (text)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                out.addfile(entry, io.BytesIO(content))
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                out.addfile(entry)
    return buffer.getvalue()


def read(data: bytes) -> dict[str, bytes | str]:
    """All members with their content."""
    found: dict[str, bytes | str] = {}
    with archive.readable():
        for member in archive.members(archive.open_stream(io.BytesIO(data))):
            found[member.name] = member.data.read() if member.data else member.link
    return found


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "xz", "zstd"],
)
def test_compressed_or_not(pack: Callable[[bytes], bytes]) -> None:
    big = bytes(range(256)) * 20000
    data = tar(("oci-layout", b"{}"), ("./blobs//sha256/x", big), ("empty", b""))
    assert read(pack(data)) == {"oci-layout": b"{}", "blobs/sha256/x": big, "empty": b""}


def test_links_are_resolved_against_their_folder() -> None:
    found = read(tar(("a/layer.tar", b"x"), ("b/layer.tar", "../a/layer.tar")))
    assert found["b/layer.tar"] == "a/layer.tar"


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "..", "blobs/../../../etc/passwd", "./../../x"]
)
def test_a_name_outside_is_refused(name: str) -> None:
    with pytest.raises(CliError, match="points outside of the archive"):
        read(tar((name, b"x")))


@pytest.mark.parametrize("target", ["../../x", "a/../../../x"])
def test_a_link_outside_is_refused(target: str) -> None:
    with pytest.raises(CliError, match="points outside of the archive"):
        read(tar(("a/link", target)))


def test_an_absolute_name_is_taken_as_relative() -> None:
    assert read(tar(("/etc/passwd", b"x"))) == {"etc/passwd": b"x"}


def test_devices_and_folders_are_ignored() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo("x")
            entry.type = kind
            out.addfile(entry)
    assert read(buffer.getvalue()) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am no archive",
        b"\x1f\x8b" + b"\0" * 100,
        b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
        b"\xfd7zXZ\0" + b"\0" * 100,
        b"BZh" + b"\0" * 100,
        tar(("x", b"y" * 4096))[:2000],
        gzip.compress(tar(("x", bytes(range(256)) * 100)))[:-200],
    ],
    ids=["empty", "text", "gzip", "zstd", "xz", "bzip2", "cut", "cut gzip"],
)
def test_what_is_damaged_is_refused(data: bytes) -> None:
    with pytest.raises(CliError, match="not a readable image archive"):
        read(data)


def test_a_flood_of_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(CliError, match="more than 3 members"):
        read(tar(*((f"f{number}", b"") for number in range(4))))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bent_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """Flips bytes of a real archive: whatever comes of it, no other error does."""
    blob = bytearray(tar(("oci-layout", b"{}"), ("a/b", b"x" * 700), ("l", "a/b")))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CliError):
        read(bytes(blob))
