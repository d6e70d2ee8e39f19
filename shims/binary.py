"""Logging programs: ``binary:///path?key=value`` as a container's stdout.

The program gets the container's stdout and stderr as descriptors 3 and 4, and tells that it is
ready through 5: by closing it, and with ``binary-v2`` by a byte before that. The container writes
to it directly. Its environment names the container; its arguments are the query's parts.
"""

from __future__ import annotations

import os
import signal

from supervisord.contracts.errors import DeadlineExceeded, Error, Unknown

from . import log
from .command import Streams, spawn
from .loop import Future, Loop
from .reaper import Exit, Reaper

_READY_SECONDS = 10.0
_END_SECONDS = 12.0


def arguments(query: str) -> list[str]:
    """``a=b&c`` as ``a``, ``b``, ``c``, with percent escapes undone."""
    parts: list[str] = []
    for pair in query.split("&") if query else []:
        key, found, value = pair.partition("=")
        parts.append(_unquote(key))
        if found:
            parts.append(_unquote(value))
    return parts


def _unquote(text: str) -> str:
    from urllib.parse import unquote_plus

    return unquote_plus(text)


class BinaryLogger:
    """One running logging program."""

    def __init__(self, loop: Loop, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper
        self._pid = 0
        self._ended: Future[Exit] | None = None

    async def start(
        self, path: str, query: str, id: str, namespace: str, *, must_report: bool
    ) -> tuple[int, int]:
        """Starts it, waits until it is ready, and answers what the container gets as stdout and
        stderr; the caller closes them. Raises Unknown."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (out_read, out_write), (err_read, err_write), (ready_read, ready_write) = pipes
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
            for fd in (out_read, err_read, ready_read, ready_write):
                if fd >= 0:
                    os.close(fd)
        return out_write, err_write

    async def end(self) -> None:
        """Waits until it has read all and ended; asks it to, and in the end forces it."""
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            if self._ended is None or self._ended.done:
                return
            if number:
                os.kill(self._pid, number)
            try:
                await self._loop.within(_END_SECONDS / 3, self._ended, "logging binary")
            except DeadlineExceeded:
                log.warning("logging binary still runs", pid=self._pid)

    def kill(self) -> None:
        """Ends it at once."""
        if self._ended is not None and not self._ended.done:
            os.kill(self._pid, signal.SIGKILL)
