"""What happened while no daemon ran, kept for clients that are about to come back.

Shims deliver the events of that time as soon as the daemon is up again, which is before any client
can have subscribed. So those (stamped before the exchange was made) are kept for a moment, and
whoever subscribes in that moment gets them first. The exchange alone uses this.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from supervisord.contracts.events import Envelope

SECONDS = 10.0
"""How long clients have to come back."""

CAPACITY = 4096
"""The oldest are dropped beyond it; Wait and List know of them all the same."""


class Missed:
    """``add`` every forwarded event, ask for ``events`` at each subscription."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._since = time.time_ns()
        self._until = time.monotonic() + seconds
        self._events: deque[Envelope] = deque(maxlen=CAPACITY)

    def add(self, envelope: Envelope) -> None:
        """Keeps an event of the time before."""
        if envelope.timestamp < self._since and time.monotonic() < self._until:
            self._events.append(envelope)

    def events(self) -> Sequence[Envelope]:
        """Those that a subscriber of now has missed, in the order of their delivery."""
        if self._events and time.monotonic() >= self._until:
            self._events.clear()
        return tuple(self._events)
