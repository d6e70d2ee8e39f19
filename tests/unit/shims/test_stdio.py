"""The streams of containers: FIFOs, files, logging programs and terminals, in a real shim."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from supervisord.contracts.errors import Unknown

from .conftest import Shim, ShimRoom, eventually, needs_root

pytestmark = needs_root


class Reader:
    """A client that reads a FIFO to its end."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = bytearray()

    async def read(self, until: bytes | None = None, seconds: float = 15.0) -> bytes:
        """All that comes until something is in it, or until the end."""
        async with asyncio.timeout(seconds):
            while until is None or until not in self.data:
                try:
                    part = os.read(self.fd, 1 << 16)
                except BlockingIOError:
                    await asyncio.sleep(0.002)
                    continue
                if not part:
                    if until is None and self.data:
                        break
                    await asyncio.sleep(0.002)
                self.data += part
        return bytes(self.data)

    def close(self) -> None:
        os.close(self.fd)


async def run(shim: Shim, **streams: object) -> None:
    await shim.create(**streams)
    await shim.start()


async def test_output_goes_to_the_fifos(shims: ShimRoom) -> None:
    out, err = shims.fifo("out"), shims.fifo("err")
    readers = Reader(out), Reader(err)
    shim = await shims.shim("fifos", "/bin/sh", "-c", "echo this; echo that >&2")
    before = shim.fds()
    await run(shim, stdout=out, stderr=err)
    assert await readers[0].read(b"\n") == b"this\n"
    assert await readers[1].read(b"\n") == b"that\n"
    assert await shim.wait() == 0
    await shim.delete()
    assert shim.fds() <= before + 1  # the connection to the daemon
    for reader in readers:
        assert await reader.read() in (b"this\n", b"that\n")  # an end, at last
        reader.close()


async def test_what_a_failing_runtime_says_is_no_output(shims: ShimRoom) -> None:
    out, err = shims.fifo("out"), shims.fifo("err")
    readers = Reader(out), Reader(err)
    missing = await shims.shim("missing", "/bin/no-such-command")
    with pytest.raises(Unknown, match="no-such-command"):
        await run(missing, stdout=out, stderr=err)
    shim = await shims.shim("present", "/bin/sleep", "600")
    await run(shim)
    await shim.exec("x", "/bin/no-such-command", stdout=out, stderr=err)
    with pytest.raises(Unknown, match="no-such-command"):
        await shim.start("x")
    for reader in readers:
        assert os.read(reader.fd, 1 << 16) == b""  # the end, and nothing before it
        reader.close()


async def test_twenty_megabytes_arrive_whole(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    reader = Reader(out)
    size = 20 << 20
    shim = await shims.shim(
        "big",
        "/bin/sh",
        "-c",
        f"yes 0123456789 | dd bs=64k count={size >> 16} iflag=fullblock 2>/dev/null",
    )
    started = time.monotonic()
    await run(shim, stdout=out)
    waiting = asyncio.create_task(shim.wait())
    expected = hashlib.sha256((b"0123456789\n" * (size // 11 + 1))[:size]).digest()
    data = await reader.read()
    assert len(data) == size
    assert hashlib.sha256(data).digest() == expected
    assert await waiting == 0
    assert time.monotonic() - started < 20
    await shim.delete()
    reader.close()


async def test_a_slow_reader_holds_up_its_own_stream_only(shims: ShimRoom) -> None:
    out, err = shims.fifo("out"), shims.fifo("err")
    reader = Reader(err)
    shim = await shims.shim(
        "slow",
        "/bin/sh",
        "-c",
        "dd if=/dev/zero bs=1k count=1000 2>/dev/null & echo free >&2; wait",
    )
    await run(shim, stdout=out, stderr=err)
    assert await reader.read(b"free") == b"free\n"
    assert (await shim.state()).pid > 0
    slow = Reader(out)
    assert len(await slow.read()) == 1000 << 10
    assert await shim.wait() == 0
    await shim.delete()
    reader.close()
    slow.close()


async def test_a_vanished_reader_does_not_break_the_container(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    first = Reader(out)
    shim = await shims.shim(
        "vanish", "/bin/sh", "-c", "echo one; sleep 0.5; echo two; echo three && read gone; exit 4"
    )
    stdin = shims.fifo("in")
    await run(shim, stdin=stdin, stdout=out)
    assert await first.read(b"one") == b"one\n"
    first.close()
    await asyncio.sleep(0.8)  # it has written meanwhile
    second = Reader(out)
    assert await second.read(b"three\n") == b"two\nthree\n"
    await shim.call("CloseIO", Empty, stdin=True)
    assert await shim.wait() == 4
    await shim.delete()
    second.close()


async def test_input_ends_when_it_is_closed(shims: ShimRoom) -> None:
    stdin, out = shims.fifo("in"), shims.fifo("out")
    reader = Reader(out)
    shim = await shims.shim("cat", "/bin/cat")
    await run(shim, stdin=stdin, stdout=out)
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"first\n")
    assert await reader.read(b"first\n") == b"first\n"
    os.close(writer)  # a client that goes away does not end the input
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"second\n")
    assert await reader.read(b"second\n") == b"first\nsecond\n"
    await shim.call("CloseIO", Empty, stdin=True)
    os.write(writer, b"third\n")
    os.close(writer)
    assert await shim.wait() == 0
    assert await reader.read() == b"first\nsecond\nthird\n"
    await shim.delete()
    reader.close()


async def test_execs_have_streams_of_their_own(shims: ShimRoom) -> None:
    stdin, out = shims.fifo("in"), shims.fifo("out")
    reader = Reader(out)
    shim = await shims.shim("estreams", "/bin/sleep", "60")
    await run(shim)
    before = shim.fds()
    await shim.exec("one", "/bin/tr", "a-z", "A-Z", stdin=stdin, stdout=out)
    await shim.start("one")
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"loud\n")
    await shim.call("CloseIO", Empty, exec_id="one", stdin=True)
    os.close(writer)
    assert await shim.wait("one") == 0
    assert await reader.read() == b"LOUD\n"
    await shim.delete("one")
    assert shim.fds() == before
    reader.close()


async def test_files(shims: ShimRoom) -> None:
    path = shims.base / "logs/new/out.log"
    shim = await shims.shim("file", "/bin/sh", "-c", "echo out; echo err >&2")
    for _ in range(2):
        await run(shim, stdout=f"file://{path}", stderr=f"file://{path}")
        assert await shim.wait() == 0
        await shim.delete()
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["err", "err", "out", "out"]


async def test_a_full_disk_does_not_stop_the_container(shims: ShimRoom) -> None:
    shim = await shims.shim(
        "full", "/bin/sh", "-c", "dd if=/dev/zero bs=1k count=500 2>/dev/null; exit 5"
    )
    await run(shim, stdout="file:///dev/full")
    assert await shim.wait() == 5
    await shim.delete()
    assert "output is discarded" in shim.log


LOGGER = """#!/bin/sh
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" > "$2.start"
exec 5>&-
cat <&3 > "$2.out" &
cat <&4 > "$2.err"
wait
"""


async def test_logging_programs(shims: ShimRoom) -> None:
    program, target = shims.base / "logger", shims.base / "log"
    program.write_text(LOGGER)
    program.chmod(0o700)
    shim = await shims.shim("binary", "/bin/sh", "-c", "echo out; echo err >&2")
    before = shim.fds()
    await run(shim, stdout=f"binary://{program}?to={target}&x=a%20b", stderr="binary://ignored")
    assert await shim.wait() == 0
    await shim.delete()
    assert (shims.base / "log.start").read_text() == f"ns binary to {target} x a b\n"
    assert (shims.base / "log.out").read_text() == "out\n"
    assert (shims.base / "log.err").read_text() == "err\n"
    assert shim.fds() <= before + 1


async def test_a_logging_program_that_fails_fails_the_create(shims: ShimRoom) -> None:
    shim = await shims.shim("nolog", "/bin/true")
    before = shim.fds()
    with pytest.raises(Unknown, match="absent-logger"):
        await shim.create(stdout="binary:///absent-logger")
    with pytest.raises(Unknown, match="did not call ready"):
        await shim.create(stdout="binary-v2:///bin/true")
    assert shim.fds() == before


async def test_terminals(shims: ShimRoom) -> None:
    stdin, out = shims.fifo("in"), shims.fifo("out")
    reader = Reader(out)
    shim = await shims.shim(
        "tty", "/bin/sh", "-c", "stty size; read line; stty size; echo got $line; exit 9"
    )
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace('"process": {', '"process": {"terminal": true, '))
    before = shim.fds()
    await shim.create(stdin=stdin, stdout=out, terminal=True)
    await shim.call("ResizePty", Empty, width=81, height=23)
    await shim.start()
    assert b"23 81" in await reader.read(b"23 81")
    await shim.call("ResizePty", Empty, width=132, height=50)
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"word\n")
    assert await shim.wait() == 9
    await shim.delete()
    text = await reader.read()
    assert b"50 132\r\n" in text
    assert b"got word\r\n" in text
    os.close(writer)
    reader.close()
    assert shim.fds() <= before + 1
    assert not list(shim.bundle.glob("*.sock"))


async def test_a_terminal_for_an_exec(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    reader = Reader(out)
    shim = await shims.shim("etty", "/bin/sleep", "60")
    await run(shim)
    before = shim.fds()
    # A child that stays behind must not keep the terminal open.
    await shim.exec(
        "one", "/bin/sh", "-c", "sleep 50 & tty 2>&1; echo $?", stdout=out, terminal=True
    )
    await shim.start("one")
    assert await shim.wait("one") == 0
    started = time.monotonic()
    await shim.delete("one")
    assert time.monotonic() - started < 2
    assert await reader.read()
    reader.close()
    assert shim.fds() == before


async def test_the_end_of_a_terminals_input_hangs_it_up(shims: ShimRoom) -> None:
    stdin, out = shims.fifo("in"), shims.fifo("out")
    reader = Reader(out)
    shim = await shims.shim("hup", "/bin/sh", "-c", "cat")
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace('"process": {', '"process": {"terminal": true, '))
    await shim.create(stdin=stdin, stdout=out, terminal=True)
    await shim.start()
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"hello\n")
    assert b"hello\r\nhello\r\n" in await reader.read(b"hello\r\nhello\r\n")
    os.close(writer)
    await shim.call("CloseIO", Empty, stdin=True)
    assert await shim.wait() != 0
    await shim.delete()
    reader.close()


async def test_a_terminal_can_log_to_a_file(shims: ShimRoom) -> None:
    path = shims.base / "tty.log"
    shim = await shims.shim(
        "ttyfile", "/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"
    )
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace('"process": {', '"process": {"terminal": true, '))
    await shim.create(stdout=f"file://{path}", terminal=True)
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()
    assert path.read_bytes() == b"".join(b"line %d\r\n" % i for i in range(3000))


async def test_an_out_of_memory_kill_is_told_before_the_exit(shims: ShimRoom) -> None:
    shim = await shims.shim(
        "oom",
        "/bin/sh",
        "-c",
        "dd if=/dev/zero of=/dev/null bs=200M count=1",
        resources={"memory": {"limit": 64 << 20, "swap": 64 << 20}},
    )
    await shim.create()
    await shim.start()
    await shim.wait()
    await shims.events.until("/tasks/exit")
    await eventually(lambda: len(shims.events.topics) >= 4)
    assert shims.events.topics[2] == "/tasks/oom"
    assert shims.events.topics[-1] == "/tasks/exit"
    await shim.delete()
    assert Path(shim.bundle).exists()
