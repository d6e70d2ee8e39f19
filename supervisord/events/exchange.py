"""The exchange: every event goes to every subscriber whose filters match, at once and in order.

Delivery is synchronous and never waits: each subscription has a bounded queue of its own, and one
whose queue is full ends with ResourceExhausted while everybody else goes on. Belongs to one event
loop; publishing from other threads is not allowed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache

from google.protobuf.message import Message

from supervisord.contracts.errors import Error, InvalidArgument, ResourceExhausted
from supervisord.contracts.events import Envelope
from supervisord.contracts.filters import Filter, parse
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.typed import TypedValue, pack

from .fields import EventFields
from .missed import Missed
from .seen import Seen

QUEUE = 16384
"""Events that a subscription may be behind."""


_TOPICS = 256
"""Topics that are counted each for itself: clients may invent any number."""


@lru_cache(maxsize=512)
def check_topic(topic: str) -> str:
    """``topic`` if it begins with ``/`` and each part is an identifier. Raises InvalidArgument."""
    if not topic:
        raise InvalidArgument('envelope topic "": must not be empty')
    if topic[0] != "/":
        raise InvalidArgument(f"envelope topic {topic!r}: must start with '/'")
    if len(topic) == 1:
        raise InvalidArgument(f"envelope topic {topic!r}: must have at least one component")
    for part in topic[1:].split("/"):
        check_identifier(part, f"envelope topic {topic!r}")
    return topic


@lru_cache(maxsize=512)
def _check_namespace(namespace: str) -> str:
    return check_identifier(namespace, "event envelope namespace")


class Subscription:
    """Events of one subscriber, as an asynchronous iterator. Ends with ``aclose``, or by itself
    when nobody holds it any more."""

    def __init__(self, filter: Filter, limit: int, owner: set[Subscription]) -> None:
        self._filter = filter
        self._always = filter.always
        self._limit = limit
        self._owner = owner
        self._queue: deque[Envelope] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Error | None = None
        self._ended = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Envelope:
        """The next event. Raises ResourceExhausted once the queue has overflowed and what was in
        it has been read, StopAsyncIteration after ``aclose``."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    async def aclose(self) -> None:
        """Ends the subscription and drops what is queued."""
        self._queue.clear()
        self._end(None)

    def offer(self, envelope: Envelope, fields: EventFields) -> None:
        """Queues an event that matches."""
        if not self._always and not self._filter.match(fields):
            return
        if len(self._queue) >= self._limit:
            self._end(
                ResourceExhausted(f"event subscription is more than {self._limit} events behind")
            )
            return
        self._queue.append(envelope)
        self._wake()

    def _end(self, error: Error | None) -> None:
        self._owner.discard(self)
        self._ended = True
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """Implements contracts.events.Exchange. ``queue`` bounds each subscription. ``published``
    counts events, ``topics`` those of each topic."""

    def __init__(self, queue: int = QUEUE) -> None:
        self._limit = queue
        self._subscriptions: set[Subscription] = set()
        self._missed = Missed()
        self._listener: Callable[[Envelope], None] | None = None
        self._seen = Seen()
        self.published = 0
        self.topics: dict[str, int] = {}

    @property
    def subscribers(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscriptions)

    def publish(self, namespace: str, topic: str, event: Message | TypedValue) -> None:
        """Stamps and delivers one event. Raises InvalidArgument (namespace, topic)."""
        _check_namespace(namespace)
        check_topic(topic)
        payload = pack(event) if isinstance(event, Message) else event
        self._deliver(Envelope(time.time_ns(), namespace, topic, payload))

    def forward(self, envelope: Envelope) -> None:
        """Delivers an event that a shim has stamped; once (see ``seen``). Raises
        InvalidArgument."""
        _check_namespace(envelope.namespace)
        check_topic(envelope.topic)
        if envelope.timestamp <= 0:
            raise InvalidArgument("envelope timestamp: must be set on a forwarded event")
        if self._seen.again(envelope):
            return
        self._missed.add(envelope)
        if self._listener is not None:
            self._listener(envelope)
        self._deliver(envelope)

    def attend(self, listener: Callable[[Envelope], None] | None) -> None:
        """See the contract."""
        self._listener = listener

    def subscribe(self, filters: Sequence[str] = ()) -> Subscription:
        """Events from now on that match any of the filters, after those that were missed while no
        daemon ran (see ``missed``). Raises InvalidArgument."""
        subscription = Subscription(parse(filters), self._limit, self._subscriptions)
        for envelope in self._missed.events():
            subscription.offer(envelope, EventFields(envelope))
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        """Ends all subscriptions."""
        for subscription in list(self._subscriptions):
            await subscription.aclose()

    def _deliver(self, envelope: Envelope) -> None:
        self.published += 1
        topic = envelope.topic
        if topic not in self.topics and len(self.topics) >= _TOPICS:
            topic = "other"
        self.topics[topic] = self.topics.get(topic, 0) + 1
        fields = EventFields(envelope)
        for subscription in tuple(self._subscriptions):
            subscription.offer(envelope, fields)
