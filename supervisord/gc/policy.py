"""When a collection is due: containerd's thresholds as a pure state machine.

Times are seconds of a monotonic clock, given by the caller. Used by the scheduler alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_PAUSE = 0.005
_FIRST_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The configuration, with containerd's names and defaults.

    ``pause_threshold``: the share of time that collections may take (at most 0.5).
    ``deletion_threshold``: deletions after which one starts at once; with 0 they wait for the
    next scheduled one. ``mutation_threshold``: changes after which the next scheduled one takes
    place; 0 for never. ``schedule_delay``, ``startup_delay``: seconds; without a startup delay the
    first one follows the first deletion."""

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: float = 0.0
    startup_delay: float = 0.1


class Policy:
    """Counts what happens, and says when the next collection is due."""

    def __init__(self, thresholds: Thresholds, now: float) -> None:
        self._pause = min(max(thresholds.pause_threshold, 0.0), 0.5)
        self._deletion_threshold = max(thresholds.deletion_threshold, 0)
        self._mutation_threshold = max(thresholds.mutation_threshold, 0)
        self._delay = max(thresholds.schedule_delay, 0.0)
        startup = max(thresholds.startup_delay, 0.0)
        self._last = now
        self._interval = _FIRST_INTERVAL
        self._total = 0.0
        self._count = 0
        self._deletions = 0
        self._mutations = 0
        self._dirty = False
        self._scheduled: float | None = None
        self._asked: float | None = now + startup if startup else None
        self._first = not startup

    def mutated(self, now: float, *, deleted: bool) -> None:
        """A commit; ``deleted`` if it may have made garbage. As in containerd every commit after
        a deletion counts as one, until the next collection."""
        self._mutations += 1
        self._dirty = self._dirty or deleted
        if self._dirty:
            self._deletions += 1
        if 0 < self._deletion_threshold <= self._deletions:
            self._ask(now + self._delay)
        if self._first:
            # There is no interval yet that a collection could wait for.
            if (self._dirty and not self._deletion_threshold) or (
                0 < self._mutation_threshold <= self._mutations
            ):
                self._ask(now + self._delay)
        elif self._scheduled is None and (
            self._dirty or 0 < self._mutation_threshold <= self._mutations
        ):
            # The scheduled times are whole intervals after the last collection.
            intervals = max(math.ceil((now - self._last) / self._interval), 1)
            self._scheduled = self._last + intervals * self._interval

    def triggered(self, now: float) -> None:
        """Somebody waits for a collection."""
        self._ask(now + self._delay)

    def due(self) -> float | None:
        """When to collect; None while there is no reason to."""
        if self._asked is None or self._scheduled is None:
            return self._scheduled if self._asked is None else self._asked
        return min(self._asked, self._scheduled)

    def started(self) -> None:
        """A collection begins: what happens from now on counts for the next one."""
        self._asked = None
        self._scheduled = None
        self._first = False
        self._deletions = 0
        self._mutations = 0
        self._dirty = False

    def finished(self, now: float, took: float) -> None:
        """A collection has succeeded; how long it held up others sets the interval to the next."""
        self._total += took
        self._count += 1
        if self._pause > 0:
            average = max(self._total / self._count, _LEAST_PAUSE)
            self._interval = average / self._pause - average
        self._last = now

    def failed(self, now: float) -> None:
        """A collection has failed; another one follows after an interval and a second."""
        self._last = now
        self._ask(now + self._interval + 1.0)

    def _ask(self, when: float) -> None:
        self._asked = when if self._asked is None else min(self._asked, when)
