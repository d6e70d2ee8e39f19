"""What shims have forwarded of late, so that nobody hears of it twice.

A shim that does not learn whether the daemon took an event sends it again, and a shim that took
over from a dead one tells the exits that its predecessor may have told. The exchange alone uses
this.
"""

from __future__ import annotations

from supervisord.contracts.events import Envelope

CAPACITY = 2048
"""Events that are remembered; those that are told twice come close together."""

_PREFIX = "/tasks/"
_EXIT = "/tasks/exit"


class Seen:
    """Asked once for each forwarded event."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._keys: dict[int, None] = {}  # in the order of their coming

    def again(self, envelope: Envelope) -> bool:
        """Whether this event of a task has been told: one with the same time and content. An exit
        has its own time in it; when it was told is of no matter."""
        if not envelope.topic.startswith(_PREFIX):
            return False
        when = 0 if envelope.topic == _EXIT else envelope.timestamp
        key = hash((envelope.namespace, envelope.topic, when, envelope.event.value))
        if key in self._keys:
            return True
        self._keys[key] = None
        if len(self._keys) > self._capacity:
            del self._keys[next(iter(self._keys))]
        return False
