"""Moves bytes from one descriptor to another, never waiting for either.

Pipes are spliced, so the bytes do not pass through this process; terminals and files are copied.
A reader that is slow holds up its own stream only. A target that fails is left out from then on
and the source still drained, because a container must not stop for a full disk or a lost reader.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from . import log
from .loop import READ, WRITE, Future, Loop

_CHUNK = 64 << 10
_SPLICE = 1 << 20
_ROUNDS = 32
"""Chunks moved in one turn, before other streams get theirs."""

_GRACE = 0.02
"""What a terminal needs to hand over the last words of a process that has ended."""

_ABSENCE = 0.25
"""How long to wait before a terminal that nobody has open is looked at again."""

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pump:
    """One direction. Owns both descriptors and closes them at the end: when the source ends,
    after ``finish``, or at once by ``stop``. ``done`` tells."""

    def __init__(
        self,
        loop: Loop,
        source: int,
        target: int,
        *,
        splice: bool,
        drain: bool = True,
        terminal: bool = False,
        later: bool = False,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """``drain`` is False for input: when a container closed its stdin, we stop reading.
        ``terminal`` says that the source is a pty's master: it seems ended whenever nobody has
        the other side open, and may be opened again, so only ``finish`` ends it. With ``later``
        nothing moves before ``begin``."""
        self.done: Future[None] = Future(loop)
        self._loop = loop
        self._source = source
        self._target = target
        self._splice = splice
        self._drain = drain
        self._terminal = terminal
        self._on_end = on_end
        self._held = b""
        self._finishing = False
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

    def stop(self) -> None:
        """Ends now; what is held is lost."""
        if self.done.done:
            return
        self._loop.unwatch(self._source)
        os.close(self._source)
        if self._target >= 0:
            self._loop.unwatch(self._target)
            os.close(self._target)
        self.done.set(None)
        self._on_end()

    def _move(self, _: int) -> None:
        for _round in range(_ROUNDS):
            try:
                if not (self._splice_once() if self._splice else self._copy_once()):
                    self.stop()
                    return
            except BlockingIOError:
                if not self._wait_for_target() and self._finishing:
                    self.stop()
                return
            except OSError as error:
                if error.errno == errno.EIO and self._terminal and not self._held:
                    self._nobody_there()
                    return
                if not self._lose_target(error):
                    self.stop()
                    return

    def _splice_once(self) -> int:
        return os.splice(self._source, self._target, _SPLICE, flags=_FLAGS)

    def _copy_once(self) -> int:
        """Bytes moved; 0 at the end."""
        if not self._held:
            self._held = os.read(self._source, _CHUNK)
            if not self._held:
                return 0
        if self._target < 0:
            self._held = b""
            return 1
        written = os.write(self._target, self._held)
        self._held = self._held[written:]
        return max(written, 1)

    def _wait_for_target(self) -> bool:
        """Called when nothing moved: waits for the target if it is the one that is full."""
        full = bool(self._held) if not self._splice else self._source_has_data()
        if full:
            self._loop.unwatch(self._source)
            self._loop.watch(self._target, WRITE, self._target_ready)
        return full

    def _source_has_data(self) -> bool:
        import select

        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))

    def _nobody_there(self) -> None:
        if self._finishing:
            self.stop()
        else:
            self._loop.unwatch(self._source)
            self._loop.later(_ABSENCE, self._again)

    def _again(self) -> None:
        if not self.done.done:
            self._loop.watch(self._source, READ, self._move)
            self._move(0)

    def _target_ready(self, _: int) -> None:
        self._loop.unwatch(self._target)
        self._loop.watch(self._source, READ, self._move)
        self._move(0)

    def _lose_target(self, error: OSError) -> bool:
        """Whether to go on without the target."""
        if not self._drain or self._target < 0:
            return False
        log.warning("output is discarded from now on", error=error)
        self._loop.unwatch(self._target)
        os.close(self._target)
        self._target = -1
        self._splice = False
        self._held = b""
        return True
