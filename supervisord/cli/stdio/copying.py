"""Copying between the FIFOs of a process and our own streams, one thread per direction.

Output is moved with splice(2) where the kernel allows it, else by read and write. A reader of our
output that went away makes the copier say so and discard the rest, so that nothing is stuck on us.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 1 << 20
_SETPIPE_SZ = 1031


class Output:
    """Copies a FIFO to one of our descriptors until every writer has closed it."""

    def __init__(self, path: str, target: int, gone: Callable[[], None]) -> None:
        self._target = target
        self._gone = gone
        self._source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop, self._waker = os.pipe()
        self._moved = time.monotonic()
        self._writing = False
        self._splice = True
        self._thread = threading.Thread(target=self._run, name=path, daemon=True)
        _enlarge(self._source)

    def start(self) -> None:
        """Begins to copy."""
        self._thread.start()

    def finish(self, quiet: float) -> None:
        """Waits for the end of the stream; gives up when nothing came for ``quiet`` seconds,
        which happens when a process that outlives its parent has kept the stream open."""
        while self._thread.is_alive():
            self._thread.join(0.05)
            if not self._writing and time.monotonic() - self._moved > quiet:
                break
        self.close()

    def close(self) -> None:
        """Stops copying."""
        if self._waker >= 0:
            os.close(self._waker)
            self._waker = -1
        if self._thread.ident is not None:
            self._thread.join(1.0)
        if not self._thread.is_alive() and self._source >= 0:
            os.close(self._source)
            os.close(self._stop)
            self._source = self._stop = -1

    def touch(self) -> None:
        """Begins to count silence from now."""
        self._moved = time.monotonic()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            # A FIFO that nobody has opened for writing yet reports nothing at all.
            ready = dict(poll.poll())
            if self._stop in ready and self._source not in ready:
                return
            try:
                if not self._move():
                    return
            except BlockingIOError:
                continue
            self._moved = time.monotonic()

    def _move(self) -> bool:
        """Moves what is there; False at the end of the stream."""
        if self._splice:
            try:
                self._writing = True
                return os.splice(self._source, self._target, _CHUNK) > 0
            except BlockingIOError:
                # Either side may be the one that would block.
                self._splice = False
            except OSError as error:
                if error.errno == errno.EPIPE:
                    self._discard()
                elif error.errno != errno.EINVAL:
                    raise
                self._splice = False
            finally:
                self._writing = False
        data = os.read(self._source, 65536)
        if not data:
            return False
        self._write(data)
        return True

    def _write(self, data: bytes) -> None:
        if self._target < 0:
            return
        view = memoryview(data)
        self._writing = True
        try:
            while view:
                try:
                    view = view[os.write(self._target, view) :]
                except BlockingIOError:
                    select.select([], [self._target], [])
        except BrokenPipeError:
            self._discard()
        finally:
            self._writing = False

    def _discard(self) -> None:
        self._target = -1
        self._gone()


class Input:
    """Copies one of our descriptors to a FIFO; tells ``ended`` when ours is at its end."""

    def __init__(self, path: str, source: int, ended: Callable[[], None]) -> None:
        self._path = path
        self._source = source
        self._ended = ended
        self._closing = False
        self._stop, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name=path, daemon=True)

    def start(self) -> None:
        """Begins to copy; waits in its own thread until the shim has opened the other end."""
        self._thread.start()

    def close(self) -> None:
        """Stops copying, even where no shim ever opened the FIFO."""
        self._closing = True
        os.close(self._waker)
        with suppress(OSError):
            # Gives a waiting open(2) its reader for a moment.
            os.close(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if self._thread.ident is not None:
            self._thread.join(1.0)
        if not self._thread.is_alive():
            os.close(self._stop)

    def _run(self) -> None:
        try:
            target = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            at_end = self._copy(target)
        finally:
            os.close(target)
        if at_end and not self._closing:
            self._ended()

    def _copy(self, target: int) -> bool:
        """True when our descriptor came to its end."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        polled = True
        try:
            poll.register(self._source, select.POLLIN)
        except OSError:
            polled = False
        while not self._closing:
            if polled and self._source not in dict(poll.poll()):
                return False
            try:
                data = os.read(self._source, 65536)
            except OSError:
                return True
            if not data:
                return True
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(target, view) :]
            except BrokenPipeError:
                return False
        return False


def _enlarge(fifo: int) -> None:
    """Asks for a buffer of 1 MiB; an unprivileged user may get less, which works too."""
    import fcntl

    with suppress(OSError):
        fcntl.fcntl(fifo, _SETPIPE_SZ, _CHUNK)
