"""Readers of a container's output that are late, gone or slow, and logging programs that fail."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shims import binary
from shims.binary import BinaryLogger, arguments
from shims.loop import Loop
from shims.reaper import Reaper, catch_signal
from supervisord.contracts.errors import InvalidArgument, Unknown

from .conftest import Shim, ShimRoom, eventually, needs_root
from .test_stdio import Reader, run

pytestmark = needs_root

MUCH = "dd if=/dev/zero bs=1k count=1000 2>/dev/null"
LEFT = "dd if=/dev/zero bs=1k count=100 2>/dev/null"
"""More than a FIFO takes, and less than FIFO and pipe together."""

LEFT_ERRORS = "dd if=/dev/zero bs=1k count=100 >&2 2>/dev/null"
MUCH_ERRORS = "dd if=/dev/zero bs=1k count=1000 >&2 2>/dev/null"


async def timed_delete(shim: Shim, exec_id: str = "") -> float:
    """Seconds that a delete takes. One that waits for streams takes ten."""
    began = time.monotonic()
    await shim.delete(exec_id)
    return time.monotonic() - began


async def test_a_delete_does_not_wait_for_readers_that_are_gone(shims: ShimRoom) -> None:
    out, err = shims.fifo("out"), shims.fifo("err")
    shim = await shims.shim("gone", "/bin/sh", "-c", f"{LEFT}; {LEFT_ERRORS}")
    before = shim.fds()
    readers = Reader(out), Reader(err)
    await run(shim, stdout=out, stderr=err)
    for reader in readers:
        reader.close()
    assert await shim.wait() == 0
    assert await timed_delete(shim) < 8
    assert shim.fds() <= before + 1
    assert shim.log.count("output was left behind, nobody reads it") == 2


async def test_a_container_that_nobody_reads_can_be_killed_and_deleted(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("full", "/bin/sh", "-c", MUCH)
    await run(shim, stdout=out)
    await shim.kill()
    await shim.wait()
    assert await timed_delete(shim) < 8


async def test_readers_that_go_during_a_delete_end_it(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("going", "/bin/sh", "-c", LEFT)
    reader = Reader(out)
    await run(shim, stdout=out)
    assert await shim.wait() == 0
    deleting = asyncio.create_task(timed_delete(shim))
    await asyncio.sleep(0.3)
    assert not deleting.done(), "it waits for a reader who is there"
    reader.close()
    assert await deleting < 8


async def test_a_delete_waits_for_a_reader_who_reads(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("reading", "/bin/sh", "-c", f"{MUCH}; exit 3")
    reader = Reader(out)
    await run(shim, stdout=out)
    await reader.read(b"\0")
    reading = asyncio.create_task(reader.read())
    assert await shim.wait() == 3
    await shim.delete()
    assert len(await reading) == 1000 << 10
    reader.close()


async def test_a_late_reader_finds_the_output_of_what_has_ended(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("late", "/bin/echo", "words")
    await run(shim, stdout=out)
    assert await shim.wait() == 0
    await eventually(lambda: _writers(shim, out) == 0)
    reader = Reader(out)
    assert await reader.read() == b"words\n"
    reader.close()
    await shim.delete()


def _writers(shim: Shim, path: str) -> int:
    count = 0
    for name in os.listdir(f"/proc/{shim.pid}/fd"):
        if os.readlink(f"/proc/{shim.pid}/fd/{name}") == path:
            info = Path(f"/proc/{shim.pid}/fdinfo/{name}").read_text()
            flags = next(line for line in info.splitlines() if line.startswith("flags:"))
            count += int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return count


async def test_what_an_exec_leaves_running_holds_up_no_delete_without_a_reader(
    shims: ShimRoom,
) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("behind", "/bin/sleep", "60")
    await run(shim)
    before = shim.fds()
    reader = Reader(out)
    await shim.exec("e", "/bin/sh", "-c", "sleep 50 & echo one", stdout=out)
    await shim.start("e")
    assert await shim.wait("e") == 0
    assert await reader.read(b"\n") == b"one\n"
    reader.close()
    assert await timed_delete(shim, "e") < 8
    assert shim.fds() == before


async def test_a_file_uri_of_a_fifo_waits_for_nobody(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("filefifo", "/bin/echo", "words")
    await run(shim, stdout=f"file://{out}")
    reader = Reader(out)
    assert await reader.read(b"\n") == b"words\n"
    assert await shim.wait() == 0
    await shim.delete()
    reader.close()


async def test_uris_that_lead_nowhere_leave_nothing(shims: ShimRoom) -> None:
    shim = await shims.shim("nowhere", "/bin/true")
    before = shim.fds()
    fifo = shims.fifo("fifo")
    for streams, message in (
        ({"stdout": "cri:///dev/null"}, "stdout: '/dev/null' is no regular file"),
        ({"stdout": f"cri://{fifo}"}, "is no regular file"),
        ({"stdout": f"cri://{shims.base}/x?lines=3"}, "stdout: cri:// knows max-line only"),
        ({"stderr": f"file://{shims.base}"}, "stderr: opening .*Is a directory"),
        ({"stderr": "file:///proc/version/x"}, "stderr: opening .*Not a directory"),
        ({"stderr": "binary:///bin/true"}, "stderr: a logging program takes both streams"),
        ({"stdout": f"file://{shims.base}/log", "stderr": "relative"}, "stderr: 'relative'"),
        ({"stdout": fifo, "stdin": f"{shims.base}/absent"}, "stdin: opening"),
        ({"stdin": f"file://{fifo}"}, "stdin: .* is no fifo"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await shim.create(**streams)
        assert shim.fds() <= before + 1, streams


def on_a_terminal(shim: Shim) -> None:
    """Gives the container's process a terminal."""
    config = shim.bundle / "config.json"
    config.write_text(config.read_text().replace('"process": {', '"process": {"terminal": true, '))


async def test_a_terminal_that_nobody_reads_holds_up_no_delete(shims: ShimRoom) -> None:
    out = shims.fifo("out")
    shim = await shims.shim("tty", "/bin/sh", "-c", MUCH)
    on_a_terminal(shim)
    before = shim.fds()
    await shim.create(stdout=out, terminal=True)
    await shim.start()
    await shim.kill()
    await shim.wait()
    assert await timed_delete(shim) < 8
    assert shim.fds() <= before + 1


# Logging programs -----------------------------------------------------------------------------


async def test_a_container_outlives_its_logging_program(shims: ShimRoom) -> None:
    program, pid_file = shims.base / "logger", shims.base / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nexec 5>&-\nexec sleep 60\n")
    program.chmod(0o700)
    script = f"read go; {MUCH} && {MUCH_ERRORS}; exit 7"
    shim = await shims.shim("outlives", "/bin/sh", "-c", script)
    stdin = shims.fifo("in")
    before = shim.fds()
    await run(shim, stdin=stdin, stdout=f"binary://{program}", stderr=f"binary://{program}")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"\n")
    os.close(writer)
    assert await shim.wait() == 7
    assert "logging binary has ended, output is discarded" in shim.log
    assert await timed_delete(shim) < 8
    assert shim.fds() <= before + 1


async def test_a_terminal_leads_to_a_logging_program(shims: ShimRoom) -> None:
    program, target = shims.base / "logger", shims.base / "out"
    program.write_text(f"#!/bin/sh\nexec 5>&-\nexec cat <&3 > {target}\n")
    program.chmod(0o700)
    shim = await shims.shim("ttylog", "/bin/sh", "-c", "echo one; echo two >&2; tty >&2")
    on_a_terminal(shim)
    before = shim.fds()
    await shim.create(stdout=f"binary://{program}", terminal=True)
    await shim.start()
    assert await shim.wait() == 0
    await shim.delete()
    assert target.read_bytes().startswith(b"one\r\ntwo\r\n")
    assert shim.fds() <= before + 1


async def test_an_exec_has_a_logging_program_of_its_own(shims: ShimRoom) -> None:
    program, target = shims.base / "logger", shims.base / "out"
    script = f'exec 5>&-\n(echo "$CONTAINER_ID"; cat <&3) > {target}\n'
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o700)
    shim = await shims.shim("execlog", "/bin/sleep", "60")
    await run(shim)
    before = shim.fds()
    await shim.exec("e", "/bin/echo", "from exec", stdout=f"binary://{program}")
    await shim.start("e")
    assert await shim.wait("e") == 0
    await shim.delete("e")
    assert target.read_text() == "e\nfrom exec\n"
    assert shim.fds() == before


async def test_a_slow_logging_program_gets_all(shims: ShimRoom) -> None:
    program, target = shims.base / "logger", shims.base / "out"
    program.write_text(
        f"#!{sys.executable}\nimport os, time\nos.close(5)\n"
        f"with open({str(target)!r}, 'wb') as file:\n"
        "    while data := os.read(3, 16384):\n        file.write(data)\n        time.sleep(0.01)\n"
    )
    program.chmod(0o700)
    shim = await shims.shim("slowlog", "/bin/sh", "-c", MUCH)
    await run(shim, stdout=f"binary://{program}")
    assert await shim.wait() == 0
    await shim.delete()
    assert target.stat().st_size == 1000 << 10


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def reaper(loop: Loop) -> Iterator[Reaper]:
    old = signal.getsignal(signal.SIGCHLD)
    catch_signal()
    reaper = Reaper(loop)
    yield reaper
    reaper.close()
    signal.signal(signal.SIGCHLD, old)


def _program(folder: Path, text: str) -> str:
    path = folder / "logger"
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


def test_a_logging_program_that_never_gets_ready_is_ended(
    loop: Loop, reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "_READY_SECONDS", 0.1)
    path = _program(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    logger = BinaryLogger(loop, reaper)
    before = os.listdir("/proc/self/fd")
    starting = loop.spawn(logger.start(path, "", "id", "ns", must_report=False), "start")
    with pytest.raises(Unknown, match=r"failed to start binary process: .*no answer in 0\.1 s"):
        loop.run_until(starting)
    loop.run_until(loop.spawn(logger.end(), "end"))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nexec 5>&-\nexec sleep 60\n",
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\nwhile :; do sleep 0.05; done\n",
    ],
)
def test_a_logging_program_that_does_not_end_is_ended(
    loop: Loop, reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(binary, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(binary, "_TERM_SECONDS", 0.3)
    others = _children()
    logger = BinaryLogger(loop, reaper)
    path = _program(tmp_path, text)
    ends = loop.run_until(
        loop.spawn(logger.start(path, "", "id", "ns", must_report=False), "start")
    )
    for fd in ends:
        os.close(fd)
    assert _children() - others
    loop.run_until(loop.spawn(logger.end(), "end"))
    assert not _children() - others


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_arguments_are_those_of_containerd() -> None:
    assert arguments("") == []
    assert arguments("a=b&c&a=d&e=x%20y+z") == ["a", "b", "c", "", "e", "x y z"]
