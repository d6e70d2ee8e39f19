"""Copying between FIFOs and our own descriptors."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord.cli.stdio import fifos
from supervisord.cli.stdio.copying import Input, Output


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


def write(path: str, data: bytes) -> threading.Thread:
    """A process's end of a FIFO, in a thread."""

    def run() -> None:
        with open(path, "wb", buffering=0) as out:
            view = memoryview(data)
            while view:
                view = view[out.write(view) :]

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def nobody() -> None:
    """Nobody went away."""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("mode", ["file", "append", "pipe"])
def test_output_arrives_whole(fifo: str, tmp_path: Path, mode: str) -> None:
    """Whatever our stdout is: a pipe can be spliced to, a file too, unless it appends."""
    data = os.urandom(1 << 20) * 5
    collected = bytearray()
    reader: threading.Thread | None = None
    if mode == "pipe":
        source, target = os.pipe()

        def collect() -> None:
            while piece := os.read(source, 1 << 16):
                collected.extend(piece)

        reader = threading.Thread(target=collect)
        reader.start()
    else:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "append" else 0)
        target = os.open(tmp_path / "out", flags)
    output = Output(fifo, target, nobody)
    output.start()
    writer = write(fifo, data)
    writer.join(10)
    output.finish(5.0)
    os.close(target)
    if reader is not None:
        reader.join(10)
        os.close(source)
    else:
        collected.extend((tmp_path / "out").read_bytes())
    assert hashlib.sha256(collected).digest() == hashlib.sha256(data).digest()


def test_output_waits_for_its_first_writer(fifo: str, tmp_path: Path) -> None:
    target = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    output = Output(fifo, target, nobody)
    output.start()
    time.sleep(0.1)
    write(fifo, b"late").join(5)
    output.finish(5.0)
    os.close(target)
    assert (tmp_path / "out").read_bytes() == b"late"


def test_a_stream_that_stays_open_is_given_up(fifo: str, tmp_path: Path) -> None:
    """A process that outlives its parent may hold the other end for ever."""
    target = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    output = Output(fifo, target, nobody)
    output.start()
    holder = os.open(fifo, os.O_WRONLY)
    os.write(holder, b"some")
    until(lambda: (tmp_path / "out").stat().st_size == 4)
    output.touch()
    begin = time.monotonic()
    output.finish(0.2)
    assert 0.15 < time.monotonic() - begin < 3
    os.close(holder)
    os.close(target)


def test_a_reader_that_went_away_is_told_once_and_the_rest_discarded(fifo: str) -> None:
    source, target = os.pipe()
    told: list[int] = []
    output = Output(fifo, target, lambda: told.append(1))
    output.start()
    os.close(source)
    writer = write(fifo, bytes(4 << 20))
    writer.join(10)
    assert not writer.is_alive()
    output.finish(5.0)
    os.close(target)
    assert told == [1]


def test_close_without_any_writer(fifo: str) -> None:
    output = Output(fifo, 1, nobody)
    output.start()
    output.close()
    assert not output._thread.is_alive()


def test_input_is_copied_and_its_end_is_told(fifo: str) -> None:
    source, target = os.pipe()
    ended = threading.Event()
    copier = Input(fifo, source, ended.set)
    copier.start()
    data = os.urandom(3 << 20)
    received = bytearray()

    def read() -> None:
        with open(fifo, "rb") as file:
            received.extend(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    os.close(target)
    assert ended.wait(5)
    reader.join(5)
    copier.close()
    os.close(source)
    assert bytes(received) == data


def test_input_closes_though_nobody_ever_read(fifo: str) -> None:
    source, target = os.pipe()
    copier = Input(fifo, source, nobody)
    copier.start()
    time.sleep(0.05)
    copier.close()
    assert not copier._thread.is_alive()
    os.close(source)
    os.close(target)


def test_input_closes_while_it_waits_for_us(fifo: str) -> None:
    source, target = os.pipe()
    told: list[int] = []
    copier = Input(fifo, source, lambda: told.append(1))
    copier.start()
    reader = os.open(fifo, os.O_RDONLY)
    copier.close()
    assert not copier._thread.is_alive()
    assert told == []
    for fd in (reader, source, target):
        os.close(fd)


def test_input_ends_quietly_when_its_reader_does(fifo: str) -> None:
    source, target = os.pipe()
    told: list[int] = []
    copier = Input(fifo, source, lambda: told.append(1))
    copier.start()
    os.close(os.open(fifo, os.O_RDONLY))
    os.write(target, b"x")
    until(lambda: not copier._thread.is_alive())
    assert told == []
    copier.close()
    os.close(source)
    os.close(target)


def test_fifos_are_made_and_removed(tmp_path: Path) -> None:
    base = tmp_path / "fifo"
    streams = fifos.create("web", terminal=False, parent=str(base))
    assert [os.path.basename(p) for p in (streams.stdin, streams.stdout, streams.stderr)] == [
        "web-stdin", "web-stdout", "web-stderr",
    ]  # fmt: skip
    assert os.stat(os.path.dirname(streams.stdin)).st_mode & 0o777 == 0o700
    fifos.remove_streams(streams)
    assert os.listdir(base) == []
    assert fifos.create("web", terminal=True, parent=str(base)).stderr == ""


def test_only_fifos_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_text("precious")
    fifos.remove((str(file), "file:///etc/passwd", "", str(tmp_path / "none")))
    assert file.read_text() == "precious"
