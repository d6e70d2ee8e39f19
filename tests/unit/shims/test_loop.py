"""The shim's event loop, its reaper, commands and pumps, each alone in this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from shims import reaper as reapers
from shims.apart import apart
from shims.command import Streams, finish, spawn
from shims.loop import READ, Future, Lock, Loop
from shims.pump import Pump
from shims.reaper import Exit, Reaper
from supervisord.contracts.errors import (
    DeadlineExceeded,
    Internal,
    NotFound,
    Unknown,
)

T = TypeVar("T")


def turn(loop: Loop) -> None:
    """One turn that does not wait."""
    loop.soon(lambda: None)
    loop.turn()


async def run(loop: Loop, reaper: Reaper, arguments: list[str], seconds: float = 5) -> Exit:
    return await finish(loop, reaper, spawn(arguments, Streams()), seconds, arguments[0])


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def reaper(loop: Loop) -> Iterator[Reaper]:
    before = signal.getsignal(signal.SIGCHLD)
    reapers.catch_signal()
    reaper = Reaper(loop)
    yield reaper
    reaper.close()
    signal.signal(signal.SIGCHLD, before)


def children() -> set[int]:
    """This process's children, zombies and those of fixtures among them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(int(folder.name))
    return found


def do(loop: Loop, work: Coroutine[Any, Any, T]) -> T:
    return loop.run_until(loop.spawn(work, "test"))


# The loop -----------------------------------------------------------------------------------


def test_tasks_wait_for_futures_and_get_their_errors(loop: Loop) -> None:
    future: Future[int] = Future(loop)
    first, second = (loop.spawn(_double(future), "double") for _ in range(2))
    loop.later(0.01, lambda: future.set(21))
    assert loop.run_until(first) == 42
    assert loop.run_until(second) == 42
    future.set(7)
    assert future.result() == 21
    failing: Future[int] = Future(loop)
    task = loop.spawn(_double(failing), "double")
    failing.fail(NotFound("gone"))
    with pytest.raises(NotFound, match="gone"):
        loop.run_until(task)


async def _double(future: Future[int]) -> int:
    return 2 * await future


def test_deadlines_leave_the_future_alone(loop: Loop) -> None:
    future: Future[int] = Future(loop)
    with pytest.raises(DeadlineExceeded, match=r"thing: no answer in 0\.01 s"):
        do(loop, loop.within(0.01, future, "thing"))
    future.set(1)
    assert do(loop, loop.within(0.01, future, "thing")) == 1


def test_timers_come_in_order_and_can_be_cancelled(loop: Loop) -> None:
    seen: list[int] = []
    for number in (3, 1, 2):
        loop.later(number / 100, lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.later(0.015, lambda: seen.append(9)).cancel()
    do(loop, loop.sleep(0.05))
    assert seen == [1, 2, 3]


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    fired: list[int] = []
    kept = [loop.later(0.01, lambda n=n: fired.append(n)) for n in range(3)]  # type: ignore[misc]
    for _ in range(5000):
        loop.later(120.0, lambda: None).cancel()
    assert len(loop._timers) <= 2 * 64
    assert all(timer in loop._timers for timer in kept)
    while len(fired) < 3:
        loop.turn()
    assert fired == [0, 1, 2]


def test_a_failing_callback_stops_nobody(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def fail() -> None:
        raise ValueError("mine")

    loop.soon(fail)
    loop.soon(lambda: seen.append(1))
    loop.turn()
    assert seen == [1]
    assert "mine" in capfd.readouterr().err


def test_a_dropped_task_leaves_nothing_behind(loop: Loop) -> None:
    future: Future[int] = Future(loop)
    task = loop.spawn(_double(future), "double")
    loop.turn()
    task.drop()
    assert task.done
    assert not future._callbacks
    future.set(1)
    turn(loop)


def test_locks_are_first_come_first_served(loop: Loop) -> None:
    lock, order = Lock(loop), list[int]()

    async def hold(number: int) -> None:
        async with lock:
            await loop.sleep(0.005)
            order.append(number)
            if number == 1:
                raise NotFound("a holder that fails lets go")

    tasks = [loop.spawn(hold(number), "hold") for number in range(4)]
    for number, task in enumerate(tasks):
        if number == 1:
            with pytest.raises(NotFound):
                loop.run_until(task)
        else:
            loop.run_until(task)
    assert order == [0, 1, 2, 3]


# Reaper and commands ------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("true", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_exits_find_their_owners(loop: Loop, reaper: Reaper, script: str, status: int) -> None:
    exit = do(loop, run(loop, reaper, ["sh", "-c", script]))
    assert exit.status == status
    assert abs(exit.at - time.time_ns()) < 5e9


def test_an_exit_before_its_pid_is_known_is_kept(loop: Loop, reaper: Reaper) -> None:
    got: list[Exit] = []
    with reaper.early:
        pid = spawn(["true"], Streams())
        while not reaper._early:
            loop.turn()
        reaper.expect(pid, got.append)
    loop.turn()
    assert [exit.pid for exit in got] == [pid]
    pid = spawn(["true"], Streams())
    do(loop, loop.sleep(0.1))
    assert not reaper._early  # nobody's, so it was only reaped
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stuck_command_is_killed(loop: Loop, reaper: Reaper) -> None:
    before = children()
    with pytest.raises(DeadlineExceeded, match=r"sleep: no answer in 0\.05 s"):
        do(loop, run(loop, reaper, ["sleep", "60"], 0.05))
    assert children() == before


def test_commands_inherit_nothing_but_their_streams(loop: Loop, reaper: Reaper) -> None:
    (read, write), (given, fed), (kept, other) = (os.pipe2(os.O_CLOEXEC) for _ in range(3))

    async def command() -> Exit:
        pid = spawn(
            ["sh", "-c", "ls -l /proc/self/fd; cat <&3; grep -E 'Sig(Ign|Blk)' /proc/self/status"],
            Streams(stdout=write),
            extra=(given,),
            environment={"PATH": os.environ["PATH"]},
        )
        os.close(write)
        return await finish(loop, reaper, pid, 5, "command")

    os.write(fed, b"by 3\n")
    os.close(fed)
    assert do(loop, command()).status == 0
    text = os.read(read, 8192).decode()
    assert "by 3\n" in text
    assert os.readlink(f"/proc/self/fd/{other}") not in text
    bits = sum(1 << (number - 1) for number in (1, 2, 13, 15, 17, 25))
    masks = [int(line.split()[1], 16) & bits for line in text.splitlines() if "Sig" in line]
    assert masks == [0, 0]
    for fd in (read, given, kept, other):
        os.close(fd)
    with pytest.raises(NotFound, match="executable file not found"):
        spawn(["absent-program"], Streams())
    with pytest.raises(Unknown, match="ermission"):
        spawn(["/etc/passwd"], Streams())


# Forks that take their memory along ---------------------------------------------------------


def test_work_apart_answers_or_fails(loop: Loop, reaper: Reaper) -> None:
    async def answer(inner: Loop, reaper: Reaper) -> dict[str, Any]:
        pid = spawn(["sh", "-c", "exit 4"], Streams())
        exit = await finish(inner, reaper, pid, 5, "command")
        return {"status": exit.status, "pid": os.getpid()}

    async def refuse(inner: Loop, reaper: Reaper) -> None:
        raise NotFound("this: not found")

    async def fail(inner: Loop, reaper: Reaper) -> None:
        raise ValueError("a defect")

    async def die(inner: Loop, reaper: Reaper) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def hang(inner: Loop, reaper: Reaper) -> None:
        await inner.sleep(60)

    before = children()
    got = do(loop, apart(loop, reaper, answer, 5, "work"))
    assert got["status"] == 4
    assert got["pid"] != os.getpid()
    for work, kind, message in (
        (refuse, NotFound, "this: not found"),
        (fail, Internal, "ValueError: a defect"),
        (die, Unknown, "work: the helper process ended without an answer"),
    ):
        with pytest.raises(kind, match=message):
            do(loop, apart(loop, reaper, work, 5, "work"))
    with pytest.raises(DeadlineExceeded):
        do(loop, apart(loop, reaper, hang, 0.05, "work"))
    do(loop, loop.sleep(0.1))
    assert children() == before, "all of them are reaped"


# Pumps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("splice", [True, False])
def test_pumps_move_all_through_a_slow_reader(loop: Loop, splice: bool) -> None:
    source, feed = os.pipe2(os.O_CLOEXEC)
    sink, target = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ended: list[bool] = []
    pump = Pump(loop, source, target, splice=splice, on_end=lambda: ended.append(True))
    data = os.urandom(700_000)
    got, sent = bytearray(), 0
    os.set_blocking(feed, False)
    while not pump.done.done or len(got) < len(data):
        if sent < len(data):
            with suppress(BlockingIOError):
                sent += os.write(feed, data[sent : sent + 50_000])
            if sent == len(data):
                os.close(feed)
        turn(loop)
        try:
            got += os.read(sink, 4_000)
        except BlockingIOError:
            continue
    assert bytes(got) == data
    assert ended == [True]
    os.close(sink)


def test_a_lost_target_does_not_stop_the_source(loop: Loop) -> None:
    source, feed = os.pipe2(os.O_CLOEXEC)
    sink, target = os.pipe2(os.O_CLOEXEC)
    os.close(sink)
    pump = Pump(loop, source, target, splice=True)
    for _ in range(40):
        os.write(feed, bytes(10_000))
        turn(loop)
        while _readable(source):
            turn(loop)
    os.close(feed)
    loop.run_until(pump.done)


def _readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def test_input_stops_with_its_target(loop: Loop) -> None:
    source, feed = os.pipe2(os.O_CLOEXEC)
    sink, target = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.close(sink)
    pump = Pump(loop, source, target, splice=True, drain=False)
    os.write(feed, b"x")
    loop.run_until(pump.done)
    with pytest.raises(BrokenPipeError):
        os.write(feed, b"x")
    os.close(feed)


def test_what_is_read_is_not_watched_twice(loop: Loop) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    calls: list[int] = []

    def ready(events: int) -> None:
        calls.append(events)
        loop.unwatch(read)

    loop.watch(read, READ, ready)
    os.write(write, b"x")
    loop.turn()
    turn(loop)
    assert len(calls) == 1
    os.close(read)
    os.close(write)


def test_an_early_exit_of_another_that_had_the_pid_before_is_not_taken(
    loop: Loop, reaper: Reaper
) -> None:
    with reaper.early:
        pid = spawn(["sleep", "0.05"], Streams())
        reaper.tell(Exit(pid, 9, 1))  # of a child that had the same pid, and that nobody expected
        exit = reaper.exit_of(pid)
        do(loop, loop.sleep(0))
        assert not exit.done
    assert loop.run_until(exit).status == 0


def test_early_exits_that_nobody_asks_for_do_not_pile_up(loop: Loop, reaper: Reaper) -> None:
    with reaper.early:
        for pid in range(10_000_000, 10_010_000):
            reaper.tell(Exit(pid, 0, 1))
        assert len(reaper._early) <= 4096
        assert loop.run_until(reaper.exit_of(10_009_999)).status == 0
    assert not reaper._early
