"""Runs the stream processors of a layer, as children of its worker: each reads what the one before
it writes, and the last one's output is the layer.

They die with the worker. What a program says on its standard error is kept, up to a limit, for the
case that it fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import stat
import threading
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from supervisord.contracts.errors import Error, FailedPrecondition, Unimplemented, Unknown
from supervisord.linux.process import set_parent_death_signal

if TYPE_CHECKING:
    from subprocess import (
        Popen,
    )  # otherwise imported where it is needed: it is memory of the zygote

_PAYLOAD = 3
_PIPE = 1 << 20
_KEPT = 4096
_PATIENCE = 10.0


class Processors:
    """``payloads`` has a descriptor for each that gets one, in order. ``start`` them, read from
    what it answers, then ``finish`` or ``explain``."""

    def __init__(self, descriptions: Sequence[Mapping[str, Any]], payloads: Sequence[int]) -> None:
        self._descriptions = descriptions
        self._payloads = list(payloads)
        self._running: list[_Program] = []

    def start(self, blob: int, results: int) -> int:
        """Starts all of them; answers where the layer can be read from, which is ``blob`` if there
        are none. They end when the reader of ``results`` goes, which wakes who reads from them.

        Raises Unimplemented (one is not there), FailedPrecondition (one cannot be executed)."""
        if not self._descriptions:
            return blob
        source = _from_the_start(blob)
        for description in self._descriptions:
            payload = self._payloads.pop(0) if description.get("payload") else -1
            program = _Program(description)
            source = program.start(source, payload)
            self._running.append(program)
        for program in self._running:  # no thread before the last fork
            threading.Thread(target=program.listen, daemon=True).start()
        threading.Thread(target=self._watch, args=(results,), daemon=True).start()
        return source

    def _watch(self, results: int) -> None:
        poll = select.poll()
        poll.register(results, 0)
        poll.poll()
        self.kill()

    def kill(self) -> None:
        """Ends them at once."""
        for program in self._running:
            program.process.kill()

    def finish(self) -> None:
        """Waits for their ends, once all was read. Raises Unknown when one has failed."""
        for program in self._running:
            program.finish()

    def explain(self, error: Error, *, ended: bool) -> Error:
        """Why the layer could not be read: where it had ``ended``, a processor may have failed;
        otherwise it is ``error``. None of them runs afterwards."""
        try:
            if ended:
                self.finish()
        except Error as failure:
            return failure
        finally:
            self.kill()
        return error


class _Program:
    def __init__(self, description: Mapping[str, Any]) -> None:
        self._path = str(description["path"])
        self._media_type = str(description["media_type"])
        self._command = [self._path, *description["args"]]
        self._environment = description["env"]
        self._said = b""
        self._heard = threading.Event()
        self.process: Popen[bytes]

    def start(self, source: int, payload: int) -> int:
        """Starts it on ``source``, which it takes over; answers the descriptor of its output.
        Raises as ``Processors.start``."""
        import subprocess

        def prepare() -> None:
            set_parent_death_signal(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if payload >= 0:
                os.dup2(payload, _PAYLOAD)

        low = _occupy_low()
        receiving, sending = os.pipe()
        try:
            with contextlib.suppress(PermissionError):  # the user's pipes have used up their share
                fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, _PIPE)
            self.process = subprocess.Popen(
                self._command,
                stdin=source,
                stdout=sending,
                stderr=subprocess.PIPE,
                env=self._environment,
                pass_fds=(_PAYLOAD,) if payload >= 0 else (),
                preexec_fn=prepare,  # safe: there is one thread
            )
        except OSError as error:
            os.close(receiving)
            missing = isinstance(error, FileNotFoundError)
            kind = Unimplemented if missing else FailedPrecondition
            raise kind(
                f"media type {self._media_type!r}: stream processor {self._path!r} "
                f"cannot be executed: {error.strerror}"
            ) from None
        finally:
            for fd in (sending, source, *low):
                os.close(fd)
        return receiving

    def listen(self) -> None:
        """Keeps the end of what it says, until it says no more."""
        with cast("IO[bytes]", self.process.stderr) as stream:
            while piece := os.read(stream.fileno(), _KEPT):
                self._said = (self._said + piece)[-_KEPT:]
        self._heard.set()

    def finish(self) -> None:
        """Raises Unknown when it failed."""
        from subprocess import TimeoutExpired

        try:
            status = self.process.wait(_PATIENCE)
        except TimeoutExpired:
            raise Unknown(
                f"stream processor {self._path!r} does not end, {_PATIENCE:g} s after its output"
            ) from None
        if status == 0:
            return
        self._heard.wait(_PATIENCE)
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        said = self._said.decode(errors="replace").strip()
        raise Unknown(f"stream processor {self._path!r}: {said or how}")


def _from_the_start(blob: int) -> int:
    """The blob as a description of its own, so that its position is nobody else's."""
    if stat.S_ISREG(os.fstat(blob).st_mode):
        return os.open(f"/proc/self/fd/{blob}", os.O_RDONLY | os.O_CLOEXEC)
    return os.dup(blob)


def _occupy_low() -> list[int]:
    """Opens descriptors until all up to the payload's are in use, so that no pipe of the fork's
    own is overwritten by it."""
    low: list[int] = []
    while not low or low[-1] <= _PAYLOAD:
        low.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    return low
