"""Log files that a shim writes: the entries of ``cri://``, full disks, and files that are moved."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import given
from hypothesis import strategies as st

from protos.supervisord.shim.v1 import logs_pb2
from shims.logs import CriStream, LogFile, RawStream, max_line
from supervisord.contracts.errors import FailedPrecondition, InvalidArgument, NotFound, Unknown

from .conftest import Shim, ShimRoom, eventually, needs_root

ENTRY = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) ([^\n]*)\n", re.DOTALL
)

Entries = list[tuple[bytes, bytes, bytes]]


def parse(data: bytes) -> Entries:
    """Stream, tag and content of each entry; fails on anything that is none."""
    found, at = [], 0
    while at < len(data):
        match = ENTRY.match(data, at)
        assert match is not None, data[at : at + 200]
        written = datetime.fromisoformat(match[1].decode()[:26] + "+00:00").timestamp()
        assert abs(written - time.time()) < 600
        found.append((match[2], match[3], match[4]))
        at = match.end()
    return found


def contents(entries: Entries, stream: bytes) -> bytes:
    """What a reader such as kubelet puts together."""
    return b"".join(
        text + (b"\n" if tag == b"F" else b"") for name, tag, text in entries if name == stream
    )


def entries_of(pieces: list[bytes], folder: Path, longest: int = 10) -> Entries:
    """The entries that come of a stream in these pieces."""
    path = folder / os.urandom(8).hex()
    stream = CriStream(LogFile("cri", str(path)), "stdout", longest)
    for piece in pieces:
        stream.take(piece)
    stream.end()
    return parse(path.read_bytes())


# Entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"one\n", [(b"F", b"one")]),
        (b"\n\n", [(b"F", b""), (b"F", b"")]),
        (b"no end", [(b"P", b"no end")]),
        (b"0123456789\n", [(b"F", b"0123456789")]),
        (b"0123456789a\n", [(b"P", b"0123456789"), (b"F", b"a")]),
        (b"0123456789" * 2 + b"\n", [(b"P", b"0123456789"), (b"F", b"0123456789")]),
        (b"0123456789" * 2, [(b"P", b"0123456789"), (b"P", b"0123456789")]),
        (b"windows\r\n", [(b"F", b"windows")]),
        (b"0123456789\r\n", [(b"F", b"0123456789")]),
        (b"a\rb\r\n", [(b"F", b"a\rb")]),
        (b"\xff\x00\n", [(b"F", b"\xff\x00")]),
    ],
)
def test_lines_become_entries(
    tmp_path: Path, text: bytes, expected: list[tuple[bytes, bytes]]
) -> None:
    """As containerd's CRI writes them, however the bytes come."""
    for pieces in ([text], [text[at : at + 1] for at in range(len(text))]):
        assert [entry[1:] for entry in entries_of(pieces, tmp_path)] == expected


@given(
    pieces=st.lists(st.text("ab\n", max_size=30).map(str.encode), max_size=20),
    longest=st.integers(1, 12),
)
def test_nothing_is_lost_or_too_long(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], longest: int
) -> None:
    found = entries_of(pieces, tmp_path_factory.getbasetemp(), longest)
    assert contents(found, b"stdout") == b"".join(pieces)
    assert all(len(text) <= longest for _, _, text in found)
    assert all(len(text) == longest for _, tag, text in found[:-1] if tag == b"P")


def test_streams_of_a_file_have_their_own_unfinished_lines(tmp_path: Path) -> None:
    file = LogFile("cri", str(tmp_path / "log"))
    out, err = CriStream(file, "stdout", 100), CriStream(file, "stderr", 100)
    out.take(b"half of ")
    err.take(b"other\n")
    out.take(b"one\n")
    out.end()
    assert file.is_open
    err.end()
    assert not file.is_open
    assert parse((tmp_path / "log").read_bytes()) == [
        (b"stderr", b"F", b"other"),
        (b"stdout", b"F", b"half of one"),
    ]


@pytest.mark.parametrize(
    "query",
    [
        *("max-line=0", "max-line=", "max-line=x", "max-line=1048577", "max-line=-1"),
        *("max-line=0000000011048577", f"max-line={9:05000}", "maxline=5", "a"),
    ],
)
def test_queries_that_are_refused(query: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^stdout: "):
        max_line(query, "stdout")


def test_queries_that_are_taken() -> None:
    assert max_line("", "stdout") == 16384
    assert max_line("max-line=%37", "stdout") == 7


# Disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_root
def test_what_a_full_disk_takes_is_whole(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(60 << 10))
    file = LogFile("cri", str(disk / "log"))
    stream = CriStream(file, "stdout", 1000)
    for _ in range(40):
        stream.take(b"x" * 500 + b"\n")
    lost = file.lost
    assert lost > 30 * 500
    ballast.unlink()
    stream.take(b"room again\n")
    assert file.lost == lost
    stream.end()
    data = (disk / "log").read_bytes()
    *whole, torn, last = data.splitlines(keepends=True)
    assert parse(b"".join(whole)) == [(b"stdout", b"F", b"x" * 500)] * len(whole)
    assert len(torn) < 550
    assert parse(last) == [(b"stdout", b"F", b"room again")]
    told = capfd.readouterr().err
    assert told.count("output is dropped") == 1
    assert f"lost={lost}" in told


def test_a_raw_log_is_what_came(tmp_path: Path) -> None:
    file = LogFile("file", str(tmp_path / "log"))
    streams = RawStream(file), RawStream(file)
    streams[0].take(b"a")
    streams[1].take(b"\xff")
    streams[0].end()
    streams[1].take(b"b\n")
    streams[1].end()
    assert (tmp_path / "log").read_bytes() == b"a\xffb\n"


# In a shim ------------------------------------------------------------------------------------


async def reopen(shim: Shim, exec_id: str = "", id: str = "") -> None:
    request = logs_pb2.ReopenRequest(id=id or shim.id, exec_id=exec_id)
    await shim.call("Reopen", logs_pb2.ReopenResponse, request, service="supervisord.shim.v1.Logs")


async def run(shim: Shim, **streams: object) -> None:
    await shim.create(**streams)
    await shim.start()


@needs_root
async def test_both_streams_share_a_file(shims: ShimRoom) -> None:
    path = shims.base / "logs/new/0.log"
    shim = await shims.shim("cri", "/bin/sh", "-c", "echo out; echo err >&2; echo -n open; exit 3")
    before = shim.fds()
    await run(shim, stdout=f"cri://{path}", stderr=f"cri://{path}")
    assert await shim.wait() == 3
    await shim.delete()
    assert sorted(parse(path.read_bytes())) == [
        (b"stderr", b"F", b"err"),
        (b"stdout", b"F", b"out"),
        (b"stdout", b"P", b"open"),
    ]
    assert path.stat().st_mode & 0o777 == 0o640
    assert shim.fds() <= before + 1  # the connection to the daemon


@needs_root
async def test_a_terminal_is_logged_by_lines(shims: ShimRoom) -> None:
    path = shims.base / "tty.log"
    shim = await shims.shim("tty", "/bin/sh", "-c", "echo one; echo two; echo 0123456789")
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace('"process": {', '"process": {"terminal": true, '))
    await run(shim, stdout=f"cri://{path}?max-line=7", terminal=True)
    assert await shim.wait() == 0
    await shim.delete()
    assert [entry[1:] for entry in parse(path.read_bytes())] == [
        (b"F", b"one"),
        (b"F", b"two"),
        (b"P", b"0123456"),
        (b"F", b"789"),
    ]


@needs_root
@pytest.mark.parametrize("scheme", ["cri", "file"])
async def test_files_are_moved_while_they_are_written(shims: ShimRoom, scheme: str) -> None:
    """Nothing is lost, doubled or torn by a rotation."""
    path = shims.base / "0.log"
    shim = await shims.shim(
        "rotate", "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"
    )
    await run(shim, stdout=f"{scheme}://{path}", stderr=f"{scheme}://{path}")
    waiting = asyncio.create_task(shim.wait())
    moved: list[Path] = []
    while not waiting.done() and len(moved) < 5:
        await eventually(lambda: waiting.done() or (path.exists() and path.stat().st_size > 0))
        moved.append(path.rename(shims.base / f"0.log.{len(moved)}"))
        with suppress(FailedPrecondition):  # it has ended
            await reopen(shim)
    assert await waiting == 0
    await shim.delete()
    parts = [file.read_bytes() for file in (*moved, path) if file.exists()]
    if scheme == "cri":
        lines = [text for part in parts for _, tag, text in parse(part) if tag == b"F"]
    else:
        lines = b"".join(parts).splitlines()
    assert lines == [b"line %d" % n for n in range(20000)]
    assert len(parts) > 1


@needs_root
async def test_reopening_what_cannot_be_reopened(shims: ShimRoom) -> None:
    path = shims.base / "folder" / "0.log"
    shim = await shims.shim("odd", "/bin/sh", "-c", "echo one; read go; echo two")
    stdin = shims.fifo("in")
    await run(shim, stdin=stdin, stdout=f"cri://{path}")
    await eventually(lambda: path.exists() and path.stat().st_size > 0)
    kept = path.parent.rename(shims.base / "kept") / "0.log"
    path.parent.write_text("a file where the folder was")
    with pytest.raises(Unknown, match=r"0\.log"):
        await reopen(shim)
    with pytest.raises(NotFound):
        await reopen(shim, id="nobody")
    with pytest.raises(NotFound):
        await reopen(shim, "nobody")
    await shim.exec("e", "/bin/true")
    with pytest.raises(FailedPrecondition, match="no open log file"):
        await reopen(shim, "e")
    await shim.call("CloseIO", Empty, stdin=True)
    assert await shim.wait() == 0
    await eventually(lambda: len(parse(kept.read_bytes())) == 2)
    with pytest.raises(FailedPrecondition, match="no open log file"):
        await reopen(shim)
    await shim.delete()


@needs_root
async def test_an_exec_can_log_too(shims: ShimRoom) -> None:
    path = shims.base / "exec.log"
    shim = await shims.shim("elog", "/bin/sleep", "60")
    await run(shim)
    before = shim.fds()
    await shim.exec("e", "/bin/sh", "-c", "echo from exec >&2", stderr=f"cri://{path}")
    await shim.start("e")
    assert await shim.wait("e") == 0
    await shim.delete("e")
    assert parse(path.read_bytes()) == [(b"stderr", b"F", b"from exec")]
    assert shim.fds() == before


@needs_root
@pytest.mark.parametrize("scheme", ["cri", "file"])
async def test_a_full_disk_neither_stops_nor_kills(
    shims: ShimRoom, disk: Path, scheme: str
) -> None:
    path = disk / "log"
    script = (
        "dd if=/dev/zero bs=1k count=500 2>/dev/null | tr '\\0' 'a'; echo; echo full >&2; read go;"
        "echo last; exit 5"
    )
    shim = await shims.shim("full", "/bin/sh", "-c", script)
    stdin, err = shims.fifo("in"), shims.base / "err"
    await run(shim, stdin=stdin, stdout=f"{scheme}://{path}", stderr=f"file://{err}")
    await eventually(lambda: err.exists() and err.read_bytes() == b"full\n")
    await eventually(lambda: "output is dropped" in shim.log)
    os.truncate(path, 0)
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"\n")
    os.close(writer)
    assert await shim.wait() == 5
    await shim.delete()
    assert path.read_bytes().endswith(b"last\n")
    assert "a log is incomplete" in shim.log
