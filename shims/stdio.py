"""The standard streams of one process: what the runtime gets, and where it leads.

A stream leads to a FIFO of the client, to a file (``file://``), to a logging program
(``binary://``), or nowhere. The shim stands between, so that a client or a reader that vanishes
never reaches the container.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH103, PTH116, PTH120
from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from supervisord.contracts.errors import Error, InvalidArgument

from . import log
from .binary import BinaryLogger
from .command import Streams
from .console import resize
from .loop import Loop
from .pump import Pump
from .reaper import Reaper

_SCHEMES = ("fifo", "file", "binary", "binary-v2")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the client asked for: paths or URIs, "" for none."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


def split(uri: str, field: str) -> tuple[str, str, str]:
    """Scheme (``fifo`` for a bare path), path and query. Raises InvalidArgument."""
    scheme, found, rest = uri.partition("://")
    if not found:
        return "fifo", uri, ""
    if scheme not in _SCHEMES:
        raise InvalidArgument(f"{field}: unknown STDIO scheme {scheme!r}")
    path, _, query = rest.partition("?")
    if not path.startswith("/"):
        raise InvalidArgument(f"{field}: {uri!r} must have an absolute path")
    return scheme, path, query


class Stdio:
    """Opens, moves and closes the streams of one process. Nothing is left open after
    ``close``, or after an ``open`` that failed."""

    def __init__(self, loop: Loop, reaper: Reaper, wishes: Wishes) -> None:
        self._loop = loop
        self._reaper = reaper
        self._wishes = wishes
        self._given: list[int] = []  # ends that belong to the container, closed after the spawn
        self._outputs: list[Pump] = []
        self._input: Pump | None = None
        self._stdin_writer = -1
        self._master = -1
        self._logger: BinaryLogger | None = None

    # Without a terminal -------------------------------------------------------------------

    async def open(self, id: str, namespace: str, uid: int, gid: int) -> Streams:
        """Opens all; what the runtime gets belongs to ``uid`` and ``gid``.

        Raises InvalidArgument (a scheme, a path), Unknown (the logging program)."""
        wishes = self._wishes
        try:
            stdin = self._open_stdin(uid, gid) if wishes.stdin else -1
            scheme, path, query = split(wishes.stdout, "stdout") if wishes.stdout else ("", "", "")
            if scheme.startswith("binary"):
                logger = BinaryLogger(self._loop, self._reaper)
                stdout, stderr = await logger.start(
                    path, query, id, namespace, must_report=scheme == "binary-v2"
                )
                self._logger = logger
                self._given += (stdout, stderr)
            else:
                stdout = self._open_output(wishes.stdout, "stdout", uid, gid)
                stderr = self._open_output(wishes.stderr, "stderr", uid, gid)
        except BaseException:
            self.close()
            raise
        return Streams(stdin, stdout, stderr)

    def _open_stdin(self, uid: int, gid: int) -> int:
        source = self._open_stdin_fifo()
        ours = -1
        try:
            given, ours = os.pipe2(os.O_CLOEXEC)
            self._given.append(given)
            os.fchown(given, uid, gid)
            os.set_blocking(ours, False)
        except BaseException:
            os.close(source)
            if ours >= 0:
                os.close(ours)
            raise
        self._input = Pump(self._loop, source, ours, splice=True, drain=False)
        return given

    def _open_stdin_fifo(self) -> int:
        """Its reading end. A writing end is kept too, so that a client may come and go; closing
        it (``close_stdin``) lets the last client's close be the end."""
        _, path, _ = split(self._wishes.stdin, "stdin")
        try:
            source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"stdin: opening {path!r}: {error.strerror}") from error
        try:
            if stat.S_ISFIFO(os.fstat(source).st_mode):
                self._stdin_writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            else:
                raise InvalidArgument(f"stdin: {path!r} is no fifo")
        except BaseException:
            os.close(source)
            raise
        return source

    def _open_output(self, uri: str, field: str, uid: int, gid: int) -> int:
        if not uri:
            return -1
        target, is_pipe = open_target(uri, field)
        try:
            ours, given = os.pipe2(os.O_CLOEXEC)
        except BaseException:
            os.close(target)
            raise
        self._given.append(given)
        self._outputs.append(Pump(self._loop, ours, target, splice=is_pipe, later=True))
        os.fchown(given, uid, gid)
        return given

    def given(self) -> None:
        """The process is there and has its ends: ours of them are closed, and its output moves.
        Not before: what a runtime that fails writes is told as an error, not as output."""
        self._close_given()
        for pump in self._outputs:
            pump.begin()

    def _close_given(self) -> None:
        for fd in self._given:
            os.close(fd)
        self._given.clear()

    # With a terminal ----------------------------------------------------------------------

    async def attach(self, master: int, id: str, namespace: str) -> None:
        """Connects the streams with a pty's master, which belongs to this object from now on.

        Raises InvalidArgument, Unknown."""
        self._master = master
        wishes = self._wishes
        try:
            if wishes.stdin:
                source = self._open_stdin_fifo()
                os.set_blocking(master, False)
                self._input = Pump(
                    self._loop,
                    source,
                    os.dup(master),
                    splice=False,
                    drain=False,
                    on_end=self._hang_up,
                )
            target = await self._terminal_target(id, namespace)
            self._outputs.append(
                Pump(self._loop, os.dup(master), target, splice=False, terminal=True)
            )
        except BaseException:
            self.close()
            raise

    async def _terminal_target(self, id: str, namespace: str) -> int:
        uri = self._wishes.stdout
        if not uri:
            return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        scheme, path, query = split(uri, "stdout")
        if not scheme.startswith("binary"):
            return open_target(uri, "stdout")[0]
        self._logger = BinaryLogger(self._loop, self._reaper)
        stdout, stderr = await self._logger.start(
            path, query, id, namespace, must_report=scheme == "binary-v2"
        )
        os.close(stderr)
        os.set_blocking(stdout, False)
        return stdout

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the terminal, if there is one."""
        if self._master >= 0:
            resize(self._master, width, height)

    def _hang_up(self) -> None:
        """A terminal's input has ended: so does the terminal, as when a line is cut."""
        for pump in self._outputs:
            pump.finish()
        self._close_master()

    def _close_master(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    # The end ------------------------------------------------------------------------------

    def close_stdin(self) -> None:
        """Lets the input end with its last writer."""
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    def exited(self) -> None:
        """The process has ended: nobody reads its input, and a terminal says its last words."""
        if self._wishes.terminal:
            for pump in self._outputs:
                pump.finish()
        if self._input is not None:
            self._input.stop()
        self.close_stdin()

    async def drained(self, seconds: float) -> None:
        """Waits until all output has been handed over, at most so long."""
        for pump in self._outputs:
            try:
                await self._loop.within(seconds, pump.done, "drain")
            except Error as error:
                log.warning("output was left behind", error=error)
        if self._logger is not None:
            await self._logger.end()
            self._logger = None

    def close(self) -> None:
        """Closes all that is open, whatever it holds."""
        self._close_given()
        if self._input is not None:
            self._input.stop()
        for pump in self._outputs:
            pump.stop()
        self.close_stdin()
        self._close_master()
        if self._logger is not None:
            self._logger.kill()
            self._logger = None


def open_target(uri: str, field: str) -> tuple[int, bool]:
    """A descriptor to write to, and whether it is a FIFO. One of a FIFO is opened for reading
    too: so neither does the open wait for a reader, nor does its going away break the pipe.

    Raises InvalidArgument."""
    scheme, path, _ = split(uri, field)
    try:
        if scheme == "file":
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            return os.open(path, flags | os.O_CLOEXEC, 0o644), False
        if scheme == "fifo" and stat.S_ISFIFO(os.stat(path).st_mode):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), True
        if scheme == "fifo":
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC), False
    except OSError as error:
        raise InvalidArgument(f"{field}: opening {path!r}: {error.strerror}") from error
    raise InvalidArgument(f"{field}: {uri!r} is not possible here")
