"""One attached process, from its creation to its exit code.

The caller creates the task or exec while the output copiers already listen, then calls ``run``. The
main thread waits for signals and for the exit; copying happens in threads. Signals are passed on to
the process; a lost daemon is waited for, because containers outlive it.
"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc

from protos.containerd.services.tasks.v1 import tasks_pb2 as wire

from ..errors import CliError, is_code
from ..output import warn
from ..patience import PATIENCE, PAUSE
from . import terminal
from .copying import Input, Output
from .fifos import Streams

if TYPE_CHECKING:
    from ..connection import Connection

# How long a stream may stay silent after the exit of a process whose children still hold it.
QUIET = 2.0
# What a shell reports of a program that died of SIGPIPE.
SIGPIPE_CODE = 128 + signal.SIGPIPE
_NOT_FORWARDED = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}

_Event = tuple[str, Any]


class Session:
    """A process whose streams are ours. Use it as a context manager around its whole life."""

    def __init__(
        self, daemon: Connection, id: str, exec_id: str, streams: Streams, *, own: bool = True
    ) -> None:
        """``own`` tells a process that we start from one that we only attach to."""
        self._daemon = daemon
        self._id = id
        self._exec_id = exec_id
        self._streams = streams
        self._own = own
        self._gone = False
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._outputs: list[Output] = []
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            for path, target in ((self._streams.stdout, 1), (self._streams.stderr, 2)):
                if path:
                    output = Output(path, target, lambda: self._events.put(("gone", None)))
                    stack.callback(output.close)
                    self._outputs.append(output)
            stack.enter_context(self._signals())
            if self._streams.terminal:
                stack.enter_context(terminal.raw())
            self._stack = stack.pop_all()
        for output in self._outputs:
            output.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, start: Callable[[], None]) -> int:
        """Calls ``start`` (which starts the process, or does nothing for one that runs), and
        answers the exit code once the process has ended and its output is copied."""
        self._wait()
        start()
        if self._streams.stdin:
            source = Input(self._streams.stdin, 0, self._close_stdin)
            self._stack.callback(source.close)
            source.start()
        if self._streams.terminal:
            self._resize()
        code = self._loop()
        if self._gone:
            return SIGPIPE_CODE
        for output in self._outputs:
            output.touch()
        for output in self._outputs:
            output.finish(QUIET)
        return code

    def _loop(self) -> int:
        lost = 0.0
        while True:
            kind, value = self._events.get()
            if kind == "gone":
                # The reader of our output has gone, as in ``sctl run .. | head``: a program would
                # die of SIGPIPE now. One that we merely attached to goes on without us.
                self._gone = True
                if not self._own:
                    return SIGPIPE_CODE
                self._kill(signal.SIGKILL)
                continue
            if kind == "signal":
                if value == signal.SIGWINCH:
                    self._resize()
                else:
                    self._kill(value)
                continue
            error = value.exception()
            if error is None:
                return int(value.result().exit_status)
            if not is_code(error, "UNAVAILABLE"):
                raise error
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                raise CliError(f"lost the daemon; {self._id} may still be running")
            time.sleep(PAUSE)
            self._wait()

    def _wait(self) -> None:
        request = wire.WaitRequest(container_id=self._id, exec_id=self._exec_id)
        future: Any = self._daemon.tasks.Wait.future(request)
        future.add_done_callback(lambda done: self._events.put(("exit", done)))

    def _kill(self, number: int) -> None:
        request = wire.KillRequest(container_id=self._id, exec_id=self._exec_id, signal=number)
        try:
            self._daemon.tasks.Kill(request)
        except grpc.RpcError as error:
            # It may have ended meanwhile; anything else is worth a word, but not the end.
            if not is_code(error, "NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE"):
                warn(f"signal {number} could not be sent to {self._id}")

    def _resize(self) -> None:
        size = terminal.size()
        if size is None:
            return
        with suppress(grpc.RpcError):
            # The process may have ended; its terminal is nobody's concern then.
            self._daemon.tasks.ResizePty(
                wire.ResizePtyRequest(
                    container_id=self._id, exec_id=self._exec_id, width=size[0], height=size[1]
                )
            )

    def _close_stdin(self) -> None:
        with suppress(grpc.RpcError):
            # Fails only where the process has ended and needs no end of its input.
            self._daemon.tasks.CloseIO(
                wire.CloseIORequest(container_id=self._id, exec_id=self._exec_id, stdin=True)
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: object) -> None:
            self._events.put(("signal", number))

        caught = [item for item in signal.valid_signals() if item not in _NOT_FORWARDED]
        if self._streams.terminal:
            caught.append(signal.SIGWINCH)
        before = {number: signal.signal(number, note) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
