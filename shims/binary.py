"""Logging programs: ``binary:///path?key=value`` as a container's stdout.

The program gets the container's stdout and stderr as descriptors 3 and 4, and tells that it is
ready through 5: by closing it, and with ``binary-v2`` by a byte before that. The container writes
to it directly. Its environment names the container; its arguments are the query's parts. When it
dies, the container goes on, and what it writes is discarded.
"""

from __future__ import annotations

import fcntl
import os
import signal
import termios

from supervisord.contracts.errors import DeadlineExceeded, Error, Unknown

from . import log
from .command import Streams, spawn
from .loop import Future, Loop
from .pump import Pump
from .reaper import Exit, Reaper
from .targets import pairs

_READY_SECONDS = 10.0
_READ_SECONDS = 10.0
"""How long it may take to read what is left."""

_IDLE_SECONDS = 1.0
"""After so long with nothing to read it is asked to end."""

_TERM_SECONDS = 12.0
_KILL_SECONDS = 5.0
_LOOK_SECONDS = 0.25
_NOTHING = bytes(4)


def arguments(query: str) -> list[str]:
    """``a=b&c`` as ``a``, ``b``, ``c``, ``""``, with percent escapes undone; of a key that comes
    twice the first."""
    first: dict[str, str] = {}
    for key, value in pairs(query):
        first.setdefault(key, value)
    return [word for pair in first.items() for word in pair]


class BinaryLogger:
    """One running logging program."""

    def __init__(self, loop: Loop, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper
        self._pid = 0
        self._ended: Future[Exit] | None = None
        self._reads: list[int] = []
        """Reading ends of the container's streams: these pipes do not break with the program."""
        self._drains: list[Pump] = []
        self._lost = 0

    async def start(
        self, path: str, query: str, id: str, namespace: str, *, must_report: bool
    ) -> tuple[int, int]:
        """Starts it, waits until it is ready, and answers what the container gets as stdout and
        stderr; the caller closes them. Raises Unknown."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (out_read, out_write), (err_read, err_write), (ready_read, ready_write) = pipes
        self._reads = [out_read, err_read]
        try:
            self._pid = spawn(
                [path, *arguments(query)],
                Streams(),
                environment={"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace},
                extra=(out_read, err_read, ready_write),
            )
            self._ended = self._reaper.exit_of(self._pid)
            os.close(ready_write)
            ready_write = -1
            await self._loop.readable(ready_read, _READY_SECONDS, "logging binary")
            if must_report and not os.read(ready_read, 1):
                raise Unknown(
                    "logging binary did not call ready (it may have crashed or exited prematurely)"
                )
        except BaseException as error:
            os.close(out_write)
            os.close(err_write)
            self.kill()
            if isinstance(error, Error):
                raise Unknown(f"failed to start binary process: {error.message}") from error
            raise
        finally:
            for fd in (ready_read, ready_write):
                if fd >= 0:
                    os.close(fd)
        self._ended.when_done(self._died)
        return out_write, err_write

    def _died(self) -> None:
        """The container must not end because its logging program did."""
        self._drains = [Pump(self._loop, fd, -1, sink=self._lose) for fd in self._reads]
        self._reads.clear()

    def _lose(self, data: bytes) -> None:
        if not self._lost:
            log.warning("logging binary has ended, output is discarded", pid=self._pid)
        self._lost += len(data)

    async def end(self) -> None:
        """The container has ended. Waits until the program has read all and ended; asks it to
        when it has nothing to do, and in the end forces it."""
        idle = 0.0
        for _ in range(int(_READ_SECONDS / _LOOK_SECONDS)):
            idle = 0.0 if self._unread() else idle + _LOOK_SECONDS
            if idle > _IDLE_SECONDS or await self._ends_within(_LOOK_SECONDS):
                break
        for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            if self._ended is None or self._ended.done:
                break
            os.kill(self._pid, number)
            if not await self._ends_within(seconds):
                log.warning("logging binary still runs", pid=self._pid)
        self._close()

    async def _ends_within(self, seconds: float) -> bool:
        if self._ended is None:
            return True
        try:
            await self._loop.within(seconds, self._ended, "logging binary")
        except DeadlineExceeded:
            return False
        return True

    def _unread(self) -> bool:
        return any(fcntl.ioctl(fd, termios.FIONREAD, _NOTHING) != _NOTHING for fd in self._reads)

    def kill(self) -> None:
        """Ends it at once."""
        if self._ended is not None and not self._ended.done:
            os.kill(self._pid, signal.SIGKILL)
        self._close()

    def _close(self) -> None:
        for fd in self._reads:
            os.close(fd)
        self._reads.clear()
        for drain in self._drains:
            drain.stop()
        self._drains.clear()
