"""Reaps every child: runtime commands, container processes, and orphans that came to us.

The shim is a subreaper, so a container's processes become its children when the runtime ends.
An exit goes to whoever ``expect``s the pid. Between a spawn by the runtime and the moment its pid
is known, a process may already be gone; inside ``early`` such exits are kept for their owner.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from supervisord.contracts.errors import Unknown

from .loop import READ, Future, Loop

_MOST_EARLY = 4096
"""Where some process is always being started, what nobody asks for would pile up."""


class Exit(NamedTuple):
    """How a process ended: the status as a shell gives it (128 + signal), and when in ns."""

    pid: int
    status: int
    at: int


class Reaper:
    """Owns SIGCHLD and waitpid in this process. Main thread only; ``catch_signal`` comes first."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._owners: dict[int, Callable[[Exit], None]] = {}
        self._early: dict[int, Exit] = {}
        self.keeps_early = False
        self._wakeup, self._signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Python writes the signal's number there from the C handler: no race with the poll.
        signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        self.early = Early(self)
        """``with reaper.early`` around everything from a spawn to its ``expect``."""
        loop.watch(self._wakeup, READ, self._woken)

    def expect(self, pid: int, owner: Callable[[Exit], None]) -> None:
        """Tells ``owner`` when ``pid`` ends, soon if it has (inside ``early``)."""
        exit = self._claim(pid, owner)
        if exit is not None:
            self._loop.soon(lambda: owner(exit))

    def expect_at_once(self, pid: int, owner: Callable[[Exit], None]) -> None:
        """As ``expect``, but tells before it returns where ``pid`` has ended."""
        exit = self._claim(pid, owner)
        if exit is not None:
            owner(exit)

    def _claim(self, pid: int, owner: Callable[[Exit], None]) -> Exit | None:
        exit = self._early.pop(pid, None)
        if exit is None or _is_child(pid):  # the exit of another that had this pid before
            self._owners[pid] = owner
            return None
        return exit

    def check(self, pid: int, *, child: bool) -> None:
        """Refuses a pid that a runtime made up, where it is told (inside ``early``). ``child``:
        it is ours already; else whoever started it may still be on its way out.

        Raises Unknown."""
        if pid in self._early:
            return
        try:
            if child:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            else:
                os.kill(pid, 0)
        except (OSError, OverflowError) as error:
            raise Unknown(f"the OCI runtime told pid {pid}, which is none of its own") from error

    def exit_of(self, pid: int) -> Future[Exit]:
        """The exit of a child of ours, as a future."""
        future: Future[Exit] = Future(self._loop)
        self.expect(pid, future.set)
        return future

    def forget(self, pid: int) -> None:
        """Nobody wants to know of ``pid`` any more."""
        self._owners.pop(pid, None)

    def forget_early(self) -> None:
        self._early.clear()

    def reap(self) -> None:
        """Collects all that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self.tell(Exit(pid, code if code >= 0 else 128 - code, time.time_ns()))

    def tell(self, exit: Exit) -> None:
        """A child has ended: whoever expects it hears of it."""
        owner = self._owners.pop(exit.pid, None)
        if owner is not None:
            owner(exit)
        elif self.keeps_early:
            if len(self._early) >= _MOST_EARLY:
                del self._early[next(iter(self._early))]
            self._early[exit.pid] = exit

    def close(self) -> None:
        """Gives the wake-ups back."""
        signal.set_wakeup_fd(-1)
        self._loop.unwatch(self._wakeup)
        os.close(self._wakeup)
        os.close(self._signalled)

    def _woken(self, _: int) -> None:
        os.read(self._wakeup, 4096)
        self.reap()


class Early:
    """Keeps the exits of pids that nobody expects yet, until the last such block has ended."""

    __slots__ = ("_count", "_reaper")

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._count = 0

    def __enter__(self) -> None:
        self._count += 1
        self._reaper.keeps_early = True

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._reaper.keeps_early = False
            self._reaper.forget_early()


def _is_child(pid: int) -> bool:
    """Whether there is a child of that pid, alive or not yet reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def catch_signal() -> None:
    """Lets SIGCHLD wake the reapers of this process and of all that it forks."""
    signal.signal(signal.SIGCHLD, _nothing)


def _nothing(number: int, frame: object) -> None:
    """A handler must exist for the wake-up to be written."""
