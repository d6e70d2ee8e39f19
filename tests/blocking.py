"""Finds calls that block the event loop.

Called by ``tests/conftest.py`` for unit tests. Every callback of every loop is timed; time that
any thread of this process merely waited for a processor does not count (the one that waited may
have held the GIL, or be one that the callback started), so that a busy machine fails nothing.
Nor does the garbage collector's time: the heap that it looks through is mostly the tests'.
While a callback is late, a watchdog thread samples its stack: the callback counts only if our
own code, not the test's, was the innermost of the two, and nothing was being imported.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import contextlib
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

LIMIT = float(os.environ.get("SUPERVISORD_TEST_BLOCKING_SECONDS", "0.15"))
"""Seconds that one callback may hold the loop."""

_ROOT = Path(__file__).resolve().parent.parent
_OURS = tuple(f"{_ROOT / room}/" for room in ("supervisord", "shims", "snapshotters"))
_TESTS = f"{_ROOT / 'tests'}/"
_PERIOD = LIMIT / 5


class Delays(NamedTuple):
    """Seconds for which each thread of this process has waited for a processor so far."""

    at: float
    by_thread: dict[str, float]


def _delays() -> Delays:
    at = time.perf_counter()
    found = {}
    for id in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread ended
            text = Path(f"/proc/self/task/{id}/schedstat").read_text()
            found[id] = int(text.split()[1]) / 1e9
    return Delays(at, found)


class Watch:
    """Times the callbacks of loops in the main thread while it is on."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self._on = threading.Event()
        self._main = threading.main_thread().ident or 0
        self._started = 0.0
        self._samples: list[tuple[bool, str]] = []
        self._seen = deque([_delays()], maxlen=5)
        self._collecting = self._collected = 0.0
        gc.callbacks.append(self._collects)
        self._original = asyncio.Handle._run
        watch = self

        def timed(handle: asyncio.Handle) -> None:
            watch._time(handle)

        self._timed: Callable[[asyncio.Handle], None] = timed
        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        threading.Thread(target=self._sample, name="blocking-watch", daemon=True).start()

    def start(self) -> None:
        """Forgets what was and begins to watch."""
        self.reports.clear()
        self._seen.append(_delays())
        self._on.set()

    def stop(self) -> list[str]:
        """Ends watching; answers a report for each callback that blocked."""
        self._on.clear()
        return list(self.reports)

    def _time(self, handle: asyncio.Handle) -> None:
        if not self._on.is_set() or threading.get_ident() != self._main:
            self._original(handle)
            return
        self._samples = []
        collected = self._collected
        start = self._started = time.perf_counter()
        try:
            self._original(handle)
        finally:
            took = time.perf_counter() - start
            self._started = 0.0
        if took > LIMIT:
            self._judge(handle, took - self._waited(start) - (self._collected - collected))

    def _judge(self, handle: asyncio.Handle, blocked: float) -> None:
        samples = self._samples
        if blocked <= LIMIT:
            return
        if samples and sum(ours for ours, _ in samples) * 2 <= len(samples):
            return
        where = next((place for ours, place in samples if ours), "a call that kept the GIL")
        what = asyncio.base_events._format_handle(handle)  # type: ignore[attr-defined]
        self.reports.append(f"{where} blocked the event loop for {blocked:.3f} s in {what}")

    def _collects(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.perf_counter()
        else:
            self._collected += time.perf_counter() - self._collecting

    def _waited(self, since: float) -> float:
        """Seconds for which threads were ready to run and had no processor, since then at least.
        Looking is too slow for every callback: the watchdog does it now and then."""
        seen = [delays for delays in tuple(self._seen) if delays.at <= since]
        before = seen[-1].by_thread if seen else {}
        now = _delays().by_thread
        return sum(waited - before.get(id, 0.0) for id, waited in now.items())

    def _sample(self) -> None:
        while True:
            self._on.wait()
            time.sleep(_PERIOD)
            started = self._started
            if not started or time.perf_counter() - started <= LIMIT / 2:
                self._seen.append(_delays())
                continue
            frame = sys._current_frames().get(self._main)
            if frame is not None:
                self._samples.append(_classify(frame))


def _classify(frame: FrameType | None) -> tuple[bool, str]:
    """Whether the innermost frame of this project is not a test's, and where it is."""
    place = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return False, ""
        if not place and name.startswith(_TESTS):
            return False, ""
        if not place and name.startswith(_OURS):
            place = f"{Path(name).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return bool(place), place
