"""The shim's event loop: one epoll, timers, and coroutines that wait for futures.

A shim is forked from a warm interpreter and shares its pages until it writes to them. asyncio
touches about one MiB of pages in every shim, this loop about a tenth of that, so the shim has its
own. It is single-threaded, knows no cancellation but ``Task.drop``, and never blocks anywhere
but in ``Loop.run``. Everything in ``shims`` that waits is built on it; the daemon never uses it.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from supervisord.contracts.errors import DeadlineExceeded

from . import log

T = TypeVar("T")

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

_FEW_TIMERS = 64


class Future(Generic[T]):
    """A result that is not there yet. Any number of tasks may await it."""

    __slots__ = ("_callbacks", "_done", "_error", "_loop", "_value")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self._done

    def set(self, value: T) -> None:
        """Resolves it; a second time is ignored, because whoever came first decided."""
        if not self._done:
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        """Resolves it with an error, which every waiter gets."""
        if not self._done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self._done = True
        for callback in self._callbacks:
            self._loop.soon(callback)
        self._callbacks.clear()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def when_done(self, callback: Callable[[], None]) -> None:
        """Calls back from the loop, soon if it is done already."""
        if self._done:
            self._loop.soon(callback)
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Takes a callback back."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self._done:
            yield self
        return self.result()


class Task(Future[T]):
    """A running coroutine."""

    __slots__ = ("_coroutine", "_waits_for", "name")

    def __init__(
        self, loop: Loop, coroutine: Coroutine[Any, Any, T], name: str, at_once: bool
    ) -> None:
        super().__init__(loop)
        self.name = name
        self._coroutine = coroutine
        self._waits_for: Future[Any] | None = None
        if at_once:
            self._step()
        else:
            loop.soon(self._step)

    def _step(self) -> None:
        if self._done:
            return
        self._waits_for = None
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            self.set(stop.value)
        except Exception as error:
            # Nobody else would ever hear of a failure that no one awaits.
            if not self._callbacks:
                log.error("task failed", task=self.name, error=repr(error))
            self.fail(error)
        else:
            self._waits_for = waits_for
            waits_for.when_done(self._step)

    def drop(self) -> None:
        """Ends it where it waits; for tasks whose result nobody wants any more."""
        if self._done:
            return
        if self._waits_for is not None:
            self._waits_for.forget(self._step)
        self._done = True
        self._coroutine.close()


class Timer:
    """A call that is due at a time of the monotonic clock."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None] | None) -> None:
        self.due = due
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Runs callbacks when descriptors are ready, when timers are due, and soon."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._ready: list[Callable[[], None]] = []
        self._timers: list[Timer] = []
        self._many_timers = _FEW_TIMERS
        self._stopped = False

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls back in the next turn."""
        self._ready.append(callback)

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back after a while, unless the timer is cancelled."""
        timer = Timer(time.monotonic() + seconds, callback)
        if len(self._timers) >= self._many_timers:
            self._forget_cancelled()
        heapq.heappush(self._timers, timer)
        return timer

    def _forget_cancelled(self) -> None:
        """Nearly every timer is a deadline that is cancelled; those of two minutes would pile up
        for as long."""
        self._timers = [timer for timer in self._timers if timer.callback is not None]
        heapq.heapify(self._timers)
        self._many_timers = max(_FEW_TIMERS, 2 * len(self._timers))

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Calls back with the epoll events of ``fd``; one watcher for each descriptor. Raises
        OSError (EPERM) for regular files, which are always ready."""
        if fd in self._watched:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stops watching; must come before the descriptor is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], name: str, *, at_once: bool = False
    ) -> Task[T]:
        """Starts a coroutine: in the next turn, or ``at_once``."""
        return Task(self, coroutine, name, at_once)

    def future(self) -> Future[Any]:
        return Future(self)

    async def sleep(self, seconds: float) -> None:
        """Waits for a while."""
        woken: Future[None] = Future(self)
        timer = self.later(seconds, lambda: woken.set(None))
        try:
            await woken
        finally:
            timer.cancel()

    async def within(self, seconds: float, future: Future[T], what: str) -> T:
        """Awaits ``future`` for at most ``seconds``; it goes on if the time is over.

        Raises DeadlineExceeded."""
        if not future.done:
            gate: Future[None] = Future(self)

            def open_gate() -> None:
                gate.set(None)

            timer = self.later(seconds, open_gate)
            future.when_done(open_gate)
            try:
                await gate
            finally:
                timer.cancel()
                future.forget(open_gate)
        if not future.done:
            raise DeadlineExceeded(f"{what}: no answer in {seconds:g} s")
        return future.result()

    async def readable(self, fd: int, seconds: float, what: str) -> None:
        """Waits until ``fd`` can be read. Raises DeadlineExceeded."""
        ready: Future[None] = Future(self)
        self.watch(fd, READ, lambda _: ready.set(None))
        try:
            await self.within(seconds, ready, what)
        finally:
            self.unwatch(fd)

    def stop(self) -> None:
        """``run`` returns after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Turns until ``stop``."""
        while not self._stopped:
            self.turn()

    def run_until(self, future: Future[T]) -> T:
        """Turns until a future is done, and answers its result."""
        future.when_done(lambda: None)
        while not future.done:
            self.turn()
        return future.result()

    def turn(self) -> None:
        """One round: waits for something to do, and does it."""
        for fd, events in self._epoll.poll(self._patience()):
            callback = self._watched.get(fd)
            if callback is not None:  # a callback before it may have unwatched it
                self._guarded(callback, events)
        timers = self._timers
        if timers:
            now = time.monotonic()
            while timers and (timers[0].callback is None or timers[0].due <= now):
                due = heapq.heappop(timers).callback
                if due is not None:
                    self._ready.append(due)
        ready, self._ready = self._ready, []
        for call in ready:
            self._guarded(call)

    def close(self) -> None:
        self._epoll.close()

    def _patience(self) -> float:
        if self._ready:
            return 0
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        return max(0.0, timers[0].due - time.monotonic()) if timers else -1

    @staticmethod
    def _guarded(callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            # One broken stream must not take the container's supervisor with it.
            log.error("callback failed", callback=repr(callback), error=repr(error))


class Lock:
    """First come, first served; ``async with``."""

    __slots__ = ("_held", "_loop", "_queue")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._held = False
        self._queue: list[Future[None]] = []

    async def __aenter__(self) -> None:
        if self._held:
            turn: Future[None] = Future(self._loop)
            self._queue.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            self._queue.pop(0).set(None)  # handed over, so it stays held
        else:
            self._held = False
