"""Layers of ours are read by GNU tar, and its archives by ours: the same trees come out."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shims.unpack.tarwriter import Header, TarWriter
from supervisord.testing.trees import contents

from .forks import Forks

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and not name.startswith(".wh."))
IDS = st.integers(0, (1 << 32) - 2)
MODES = st.integers(0, 0o7777)
PAX = ("pax", "posix")
ROUNDS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextmanager
def scratch(base: Path) -> Iterator[Path]:
    """A new folder for one example."""
    path = Path(tempfile.mkdtemp(dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[Header, bytes]]:
    """Entries in their order: folders before what is in them, links after their targets."""
    folders: list[bytes] = [b""]
    files: list[bytes] = []
    taken = {b""}
    entries: list[tuple[Header, bytes]] = []
    for _ in range(draw(st.integers(1, 12))):
        folder = draw(st.sampled_from(folders))
        base = draw(NAMES).encode()[:255].decode(errors="ignore").encode()
        name = folder + b"/" + base if folder else base
        if not base or name in taken or len(name) > 1000:
            continue
        taken.add(name)
        header = Header(name, b"0", draw(MODES), draw(IDS), draw(IDS))
        header.mtime = draw(st.integers(0, 1 << 33))
        data = b""
        match draw(st.sampled_from(["file", "file", "folder", "link", "hard", "fifo", "device"])):
            case "file":
                data = draw(st.binary(max_size=2000))
                header.size = len(data)
                files.append(name)
            case "folder":
                header.type, header.name = b"5", name + b"/"
                folders.append(name)
            case "link":
                header.type, header.mode = b"2", 0o777
                header.linkname = draw(NAMES).encode()
            case "hard" if files:
                other = draw(st.sampled_from(files))
                (first,) = (each for each, _ in entries if each.name == other)
                same = (first.mode, first.uid, first.gid)
                header = Header(name, b"1", *same, mtime=first.mtime, linkname=other)
            case "device":
                header.type = draw(st.sampled_from([b"3", b"4"]))
                header.device = (draw(st.integers(1, 4095)), draw(st.integers(0, 255)))
            case _:
                header.type = b"6"
        entries.append((header, data))
    return entries


def written(entries: list[tuple[Header, bytes]]) -> bytes:
    out = bytearray()
    writer = TarWriter(out.extend)
    for header, data in entries:
        writer.header(header)
        out.extend(data)
        writer.pad(len(data))
    writer.end()
    return bytes(out)


def applied(forks: Forks, layer: bytes, root: Path) -> None:
    mount = {"type": "bind", "source": str(root), "options": ["rw"]}
    result: Any = forks.run(layer, [mount])
    assert "error" not in result


def times(root: Path) -> dict[str, int]:
    """Modification times but for what tar sets only at the end, or not at all."""
    found = {str(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
    return {name: info.st_mtime_ns for name, info in found.items()}


@ROUNDS
@given(entries=trees())
def test_what_we_write(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[Header, bytes]]
) -> None:
    with scratch(tmp_path_factory.getbasetemp()) as folder:
        mine, theirs = folder / "mine", folder / "theirs"
        mine.mkdir()
        theirs.mkdir()
        layer = written(entries)
        applied(forks, layer, mine)
        options = ["--numeric-owner", "--same-owner", "-p", "--delay-directory-restore"]
        subprocess.run(
            ["tar", "-C", theirs, "-x", *options], input=layer, check=True, capture_output=True
        )
        assert contents(mine) == contents(theirs)
        assert times(mine) == times(theirs)


@pytest.mark.parametrize(
    "format", ["gnu", "oldgnu", "pax", "posix --sparse", "gnu --sparse", "ustar", "v7"]
)
def test_what_gnu_tar_writes(forks: Forks, tmp_path: Path, format: str) -> None:
    """As far as each format goes: ustar and v7 have no large ids, long names and fractions."""
    name, *options = format.split()
    source = tmp_path / "source"
    made(source, name)
    options += ["--xattrs", "--xattrs-include=*"] if name in PAX else []
    options += ["--numeric-owner", "-c", "."]
    command = ["tar", "-C", str(source), f"--format={name}", *options]
    layer = subprocess.run(command, check=True, capture_output=True).stdout
    root = tmp_path / "root"
    root.mkdir()
    applied(forks, layer, root)
    assert contents(root) == contents(source)
    if name in PAX:
        assert times(root) == times(source)
    if "--sparse" in options:
        assert (root / "sparse").stat().st_blocks < 100


def made(root: Path, format: str) -> None:
    """A tree with something of every kind that the format knows."""
    root.mkdir()
    large = format not in ("ustar", "v7")
    deep = root / "/".join(["d" * 90] * (3 if large else 1))
    deep.mkdir(parents=True)
    (deep / ("n" * (200 if large else 5))).write_bytes(os.urandom(3000))
    (root / "empty").touch()
    (root / "dir").mkdir()
    (root / "dir").chmod(0o1777)
    (root / "dir/suid").write_bytes(b"x" * 512)
    os.chown(root / "dir/suid", 3_000_000_000 if large else 1000, 5)
    (root / "dir/suid").chmod(0o4755)
    (root / "dir/link").symlink_to("t/" * (120 if large else 3))
    os.link(root / "dir/suid", root / "hard")
    if format != "v7":
        os.mkfifo(root / "fifo", 0o600)
        os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    if format in PAX:
        (root / "cap").touch()
        os.setxattr(root / "cap", "security.capability", b"\1\0\0\2\0\x20" + bytes(14))
        os.setxattr(root / "cap", "user.note", b"a=b\n\0c")
    with open(root / "sparse", "wb") as file:
        file.truncate(8 << 20)
        for at in (0, 3 << 20, 7 << 20):
            file.seek(at)
            file.write(b"data")
