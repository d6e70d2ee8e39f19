"""The standard streams of one process: what the runtime gets, and where it leads.

A stream leads to a FIFO of the client, to a log file (``file://``, ``cri://``), to a logging
program (``binary://``), or nowhere. The shim stands between, so that a client or a reader that
vanishes never reaches the container.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from supervisord.contracts.errors import Error, FailedPrecondition, InvalidArgument, Unknown

from . import log
from .binary import BinaryLogger
from .command import Streams
from .console import resize
from .logs import CriStream, LogFile, RawStream, max_line
from .loop import Loop
from .pump import Pump
from .reaper import Reaper
from .targets import Opened, Uri, kind, open_target, parse, refused


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the client asked for: paths or URIs, "" for none."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


class Stdio:
    """Opens, moves and closes the streams of one process. Nothing is left open after
    ``close``, or after an ``open`` that failed."""

    def __init__(self, loop: Loop, reaper: Reaper, wishes: Wishes) -> None:
        self._loop = loop
        self._reaper = reaper
        self._wishes = wishes
        self._given: list[int] = []  # ends that belong to the container, closed after the spawn
        self._outputs: list[Pump] = []
        self._files: dict[tuple[str, str], LogFile] = {}
        self._input: Pump | None = None
        self._stdin_writer = -1
        self._master = -1
        self._logger: BinaryLogger | None = None
        self.pipes = [0, 0, 0]
        """The inodes of the pipes between the process and us: stdin, stdout, stderr; 0 for none.
        A shim that takes over after us finds the process's ends by them."""

    # Without a terminal -------------------------------------------------------------------

    async def open(self, id: str, namespace: str, uid: int, gid: int) -> Streams:
        """Opens all; what the runtime gets belongs to ``uid`` and ``gid``.

        Raises InvalidArgument (a scheme, a path), Unknown (the logging program)."""
        wishes = self._wishes
        try:
            stdin = self._open_stdin(uid, gid) if wishes.stdin else -1
            uri = parse(wishes.stdout, "stdout") if wishes.stdout else Uri("", "", "")
            if uri.scheme.startswith("binary"):
                stdout, stderr = await self._start_logger(uri, id, namespace)
                self._given += (stdout, stderr)
            else:
                stdout = self._open_output(wishes.stdout, "stdout", uid, gid)
                stderr = self._open_output(wishes.stderr, "stderr", uid, gid)
        except BaseException:
            self.close()
            raise
        return Streams(stdin, stdout, stderr)

    async def _start_logger(self, uri: Uri, id: str, namespace: str) -> tuple[int, int]:
        self._logger = BinaryLogger(self._loop, self._reaper)
        return await self._logger.start(
            uri.path, uri.query, id, namespace, must_report=uri.scheme == "binary-v2"
        )

    def _open_stdin(self, uid: int, gid: int) -> int:
        source = self._open_stdin_fifo()
        ours = -1
        try:
            given, ours = os.pipe2(os.O_CLOEXEC)
            self._given.append(given)
            os.fchown(given, uid, gid)
            self.pipes[0] = os.fstat(given).st_ino
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
        scheme, path, _ = parse(self._wishes.stdin, "stdin")
        if scheme != "fifo":
            raise InvalidArgument(f"stdin: {self._wishes.stdin!r} is no fifo")
        try:
            source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise refused("stdin", path, error) from error
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
        ours, given = output_pipe()
        self._given.append(given)
        self._lead(ours, uri, field, terminal=False)
        os.fchown(given, uid, gid)
        self.pipes[1 if field == "stdout" else 2] = os.fstat(given).st_ino
        return given

    def _lead(self, source: int, text: str, field: str, *, terminal: bool) -> None:
        """Makes the pump from a descriptor, which it takes, to where a URI says."""
        try:
            uri = parse(text, field)
            if uri.scheme.startswith("binary"):
                raise InvalidArgument(f"{field}: a logging program takes both streams, as stdout")
            found = kind(uri.path, field)
            stream, opened = None, Opened(-1, -1)
            if stat.S_ISREG(found) or (not found and uri.scheme != "fifo"):
                stream = self._log_stream(uri, field)
            elif uri.scheme == "cri":
                raise InvalidArgument(f"{field}: {uri.path!r} is no regular file")
            else:
                opened = open_target(uri.path, field)
        except BaseException:
            os.close(source)
            raise
        if stream is not None:
            pump = Pump(
                self._loop,
                source,
                -1,
                sink=stream.take,
                on_end=stream.end,
                terminal=terminal,
                later=not terminal,
            )
        else:
            pump = Pump(
                self._loop,
                source,
                opened.fd,
                keeper=opened.keeper,
                splice=opened.keeper >= 0 and not terminal,
                terminal=terminal,
                later=not terminal,
            )
        self._outputs.append(pump)

    def _log_stream(self, uri: Uri, field: str) -> CriStream | RawStream:
        scheme = "cri" if uri.scheme == "cri" else "file"
        longest = max_line(uri.query, field) if scheme == "cri" else 0
        file = self._files.get((scheme, uri.path))
        if file is None or not file.is_open:
            try:
                file = LogFile(scheme, uri.path)
            except OSError as error:
                raise refused(field, uri.path, error) from error
            self._files[scheme, uri.path] = file
        return CriStream(file, field, longest) if scheme == "cri" else RawStream(file)

    def reopen_logs(self) -> None:
        """Goes on in new files of the same names, where somebody has moved the old ones.

        Raises FailedPrecondition (no log file is open), Unknown (it goes on in the old one)."""
        files = [file for file in self._files.values() if file.is_open]
        if not files:
            raise FailedPrecondition("process has no open log file")
        failed = ""
        for file in files:
            try:
                file.reopen()
            except OSError as error:
                failed = f"reopening {file.path!r}: {error.strerror}"
        if failed:
            raise Unknown(failed)

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

    # After another shim -------------------------------------------------------------------

    def resume(self, uri: str, field: str, source: int) -> None:
        """Goes on with an output of a process that another shim had started: ``source`` is the
        reading end, which belongs to this object from now on. Where the target has gone, what
        comes is discarded, as it is when a target fails."""
        self.pipes[1 if field == "stdout" else 2] = os.fstat(source).st_ino
        again = os.dup(source)
        try:
            self._lead(source, uri, field, terminal=False)
            os.close(again)
        except InvalidArgument as error:
            log.warning("output is discarded from now on", error=error)
            self._outputs.append(Pump(self._loop, again, -1, later=True))
        self._outputs[-1].begin()

    def resume_stdin(self, writer: int) -> None:
        """Goes on with the input of such a process; ``writer`` belongs to this object."""
        try:
            source = self._open_stdin_fifo()
        except (InvalidArgument, OSError) as error:
            log.warning("input has ended", error=error)
            os.close(writer)
            return
        self.pipes[0] = os.fstat(writer).st_ino
        self._input = Pump(self._loop, source, writer, splice=True, drain=False)

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
                    drain=False,
                    on_end=self._hang_up,
                )
            await self._lead_terminal(id, namespace)
        except BaseException:
            self.close()
            raise

    async def _lead_terminal(self, id: str, namespace: str) -> None:
        uri = self._wishes.stdout
        if uri and (binary := parse(uri, "stdout")).scheme.startswith("binary"):
            target, stderr = await self._start_logger(binary, id, namespace)
            os.close(stderr)
            os.set_blocking(target, False)
        elif uri:
            self._lead(os.dup(self._master), uri, "stdout", terminal=True)
            return
        else:
            target = -1
        self._outputs.append(Pump(self._loop, os.dup(self._master), target, terminal=True))

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
        """Waits until all output has been handed over to whoever reads it, at most so long."""
        for pump in self._outputs:
            pump.hurry()
        end = time.monotonic() + seconds
        for pump in self._outputs:
            try:
                await self._loop.within(max(0.0, end - time.monotonic()), pump.done, "drain")
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


def output_pipe() -> tuple[int, int]:
    """A pipe of which the process gets the second end. That end can be read as well, so the pipe
    has a reader for as long as the process lives: when its shim dies, what it writes waits in the
    pipe for the next shim, instead of ending it by SIGPIPE."""
    ours, writer = os.pipe2(os.O_CLOEXEC)
    try:
        return ours, os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(writer)
