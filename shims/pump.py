"""Moves bytes from one descriptor to another, never waiting for either.

Large pieces between pipes are spliced, so the bytes do not pass through this process. Small ones
are copied: a spliced piece takes a slot of the pipe however small it is, and sixteen of them fill
one. A reader that is slow holds up its own stream only. A target that fails is left out from then
on and the source still drained, because a container must not stop for a lost reader.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from collections.abc import Callable

from . import log
from .loop import READ, WRITE, Future, Loop

_CHUNK = 64 << 10
_PIECE = 16 << 10
"""What is spliced when it comes at once, and copied when it is less."""

_SPLICE = 1 << 20
_PIPE_BYTES = 1 << 20
"""The size of both pipes once so much has come that it pays: fewer and larger turns take a fifth of
the processor time."""

_READ_BYTES = 256 << 10
"""When more than this has gone through a pipe of the usual size, somebody reads it."""

_ROUNDS = 32
"""Chunks moved in one turn, before other streams get theirs."""

_GRACE = 0.02
"""What a terminal needs to hand over the last words of a process that has ended."""

_ABSENCE = 0.25
"""How long to wait before a terminal that nobody has open is looked at again."""

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_NOTHING = bytes(4)
_ERRORS = 0  # the kernel tells of those unasked

Sink = Callable[[bytes], None]


def discard(data: bytes) -> None:
    """A sink that keeps nothing."""


class Pump:
    """One direction. Owns its descriptors and closes them at the end: when the source ends,
    after ``finish``, or at once by ``stop``. ``done`` tells."""

    def __init__(
        self,
        loop: Loop,
        source: int,
        target: int,
        *,
        splice: bool = False,
        keeper: int = -1,
        sink: Sink = discard,
        drain: bool = True,
        terminal: bool = False,
        later: bool = False,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """``splice`` is for two pipes. ``keeper`` is a reading end of the target, so that a
        reader may go and come back. Without a target (-1) all goes to ``sink``, which must not
        wait. ``drain`` is False for input: when a container closed its stdin, we stop reading.
        ``terminal`` says that the source is a pty's master: it seems ended whenever nobody has
        the other side open, and may be opened again, so only ``finish`` ends it. With ``later``
        nothing moves before ``begin``."""
        self.done: Future[None] = Future(loop)
        self._loop = loop
        self._source = source
        self._target = target
        self._keeper = keeper
        self._sink = sink
        self._pipes = splice
        self._drain = drain
        self._terminal = terminal
        self._on_end = on_end
        self._held = b""
        self._large = False
        self._unread = _READ_BYTES
        self._finishing = False
        self._blocked = False
        self._last_readers = False
        os.set_blocking(source, False)
        if not later:
            self.begin()

    def begin(self) -> None:
        """Starts to move."""
        if not self.done.done:
            self._loop.watch(self._source, READ, self._move)

    def finish(self) -> None:
        """Moves what can be read now, and ends."""
        if not self.done.done and not self._finishing:
            self._finishing = True
            self._loop.later(_GRACE, self._again)

    def hurry(self) -> None:
        """The process has ended, and is being deleted: a target that nobody reads, now or later,
        ends the stream. Whoever still reads is waited for."""
        if self._keeper < 0:
            return
        self._close_keeper()
        if not self.done.done:
            self._last_readers = True
            if not self._blocked:
                self._watch_readers()

    def stop(self) -> None:
        """Ends now; what is held is lost."""
        self._end()
        self._close_keeper()

    def _end(self) -> None:
        """Readers learn that it is over. One who comes late still finds what was written, as
        long as the keeper is there."""
        if self.done.done:
            return
        self._loop.unwatch(self._source)
        os.close(self._source)
        self._close_target()
        self.done.set(None)
        self._on_end()

    def _close_target(self) -> None:
        if self._target >= 0:
            self._loop.unwatch(self._target)
            os.close(self._target)
            self._target = -1

    def _close_keeper(self) -> None:
        if self._keeper >= 0:
            os.close(self._keeper)
            self._keeper = -1

    # Moving -------------------------------------------------------------------------------

    def _move(self, _: int) -> None:
        for _round in range(_ROUNDS):
            try:
                moved = self._splice_once() if self._large else self._copy_once()
                if moved <= 0:
                    if moved == 0:
                        self._end()
                    return
            except BlockingIOError:
                if not self._wait_for_target() and self._finishing:
                    self._end()
                return
            except OSError as error:
                if error.errno == errno.EIO and self._terminal and not self._held:
                    self._nobody_there()
                    return
                if not self._lose_target(error):
                    self._end()
                    return

    def _splice_once(self) -> int:
        moved = os.splice(self._source, self._target, _SPLICE, flags=_FLAGS)
        self._large = moved >= _PIECE
        if self._unread > 0:
            self._unread -= moved
            if self._unread <= 0:
                self._enlarge()
        return moved

    def _copy_once(self) -> int:
        """Bytes moved; 0 at the end, and -1 when all that was there has been moved."""
        size = _PIECE if self._pipes else _CHUNK
        drained = False
        if not self._held:
            self._held = os.read(self._source, size)
            if not self._held:
                return 0
            # A terminal hands over less than it has.
            drained = len(self._held) < size and not (self._terminal or self._finishing)
        if self._target < 0:
            self._sink(self._held)
            self._held = b""
        else:
            written = os.write(self._target, self._held)
            self._large = self._pipes and written == _PIECE
            self._held = self._held[written:]
        return -1 if drained and not self._held else 1

    def _enlarge(self) -> None:
        """Not before somebody reads: the rest waits with us, not in a FIFO, as nobody knows how
        it will be read."""
        for fd in (self._source, self._target):
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError as error:  # the user's limit is reached; it works as it is
                log.debug("a pipe stays small", error=error)

    # Waiting ------------------------------------------------------------------------------

    def _wait_for_target(self) -> bool:
        """Called when nothing moved: waits for the target if it is the one that is full."""
        full = self._source_has_data() if self._large else bool(self._held)
        if full:
            self._blocked = True
            self._loop.unwatch(self._source)
            self._loop.watch(self._target, WRITE, self._target_ready)
        return full

    def _source_has_data(self) -> bool:
        return fcntl.ioctl(self._source, termios.FIONREAD, _NOTHING) != _NOTHING

    def _target_ready(self, events: int) -> None:
        if self._last_readers and not events & WRITE:
            if self._blocked:
                log.warning("output was left behind, nobody reads it")
            self._end()
            return
        self._blocked = False
        self._loop.unwatch(self._target)
        if self._last_readers:
            self._watch_readers()
        self._loop.watch(self._source, READ, self._move)
        self._move(0)

    def _watch_readers(self) -> None:
        """Ends with the last reader, whatever else is waited for."""
        self._loop.watch(self._target, _ERRORS, self._target_ready)

    def _nobody_there(self) -> None:
        if self._finishing:
            self._end()
        else:
            self._loop.unwatch(self._source)
            self._loop.later(_ABSENCE, self._again)

    def _again(self) -> None:
        if not self.done.done:
            self._loop.watch(self._source, READ, self._move)
            self._move(0)

    def _lose_target(self, error: OSError) -> bool:
        """Whether to go on without the target."""
        if not self._drain or self._target < 0 or self._last_readers:
            return False
        log.warning("output is discarded from now on", error=error)
        self._close_target()
        self._close_keeper()
        self._pipes = self._large = False
        self._held = b""
        return True
