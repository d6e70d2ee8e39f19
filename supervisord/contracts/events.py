"""Events: what happened, told to whoever subscribes, after it is committed.

An event has a topic (``/tasks/exit``) and a payload (a message of ``containerd.events``). Order
is kept per publisher. A subscriber that does not keep up has a bounded queue; when it is full
the subscription ends with an error instead of slowing anyone else down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .typed import TypedValue

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event; ``timestamp`` in nanoseconds since the epoch."""

    timestamp: int
    namespace: str
    topic: str
    event: TypedValue


class Publisher(Protocol):
    """Where engines put their events. Never waits, never fails the caller."""

    def publish(self, namespace: str, topic: str, event: Message | TypedValue) -> None:
        """Stamps and delivers one event. Raises InvalidArgument for a malformed topic: it
        begins with ``/`` and each part is an identifier."""
        ...

    def forward(self, envelope: Envelope) -> None:
        """Delivers an event that somebody else (a shim) has stamped already."""
        ...


class Exchange(Publisher, Protocol):
    """Publisher and subscriptions."""

    def attend(self, listener: Callable[[Envelope], None] | None) -> None:
        """Has one listener called with every forwarded event, before any subscriber gets it; None
        ends that. It must neither wait nor fail."""
        ...

    def subscribe(self, filters: Sequence[str] = ()) -> AsyncIterator[Envelope]:
        """Events from now on that match any of the filters (fields ``topic``, ``namespace``,
        ``event.FIELD``). The queue exists from the call on, not from the first ``anext``.

        Raises InvalidArgument for a malformed filter, and at the ``anext`` after an overflow
        ResourceExhausted."""
        ...
