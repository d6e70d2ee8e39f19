"""Tells the daemon what happened, in order, however long it is away.

Events wait in a bounded queue until the daemon has taken them, each with the time at which it
happened. When the queue is full, the oldest that is no exit is dropped: who comes back asks for the
state anyway. Exits are never dropped, and need no bound of their own: there is one for each process
that the daemon has had started. An answer that is lost makes an event come twice; the daemon drops
the second (``supervisord.events.seen``). Between tries it waits longer and longer, but a daemon
that connects to us is tried at once, and again soon: it takes events a little later.
"""

from __future__ import annotations

import time
from collections import deque

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2
from supervisord.contracts.errors import Error, InvalidArgument, Unavailable

from . import log
from .loop import Future, Loop, Timer
from .rpc import Client

SERVICE = "containerd.services.events.ttrpc.v1.Events"
_CAPACITY = 2048
_EXIT = "/tasks/exit"
_SECONDS = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 15.0
_IDLE_SECONDS = 30.0


class Publisher:
    """The shim's end of the event stream. An empty address publishes nothing."""

    def __init__(self, loop: Loop, address: str, namespace: str, *, prompt: bool = False) -> None:
        """``prompt`` says that the daemon takes what comes over several connections in the order
        in which it was sent."""
        self._loop = loop
        self._prompt = prompt
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: deque[tuple[str, bytes]] = deque()
        """Topics, and requests to forward."""
        self._dropped = 0
        self._running = False
        self._pause: Future[None] | None = None
        self._seconds = _FIRST_PAUSE
        """How long the next pause will be."""
        self._settled: Future[None] | None = None
        self._client: Client | None = None
        self._idle: Timer | None = None

    def publish(self, topic: str, event: Message) -> None:
        """Queues one event, stamped now."""
        if self._address:
            self._add(topic, event)
            if not self._running:
                self._running = True
                self._loop.spawn(self._deliver(), "publisher")

    def publish_at_once(self, topic: str, event: Message) -> bool:
        """Whether the event is with the daemon, unread perhaps, and no other was before it. Where
        our daemon reads from us over two connections (``prompt``) it comes to this one first."""
        if not self._address:
            return True
        ready = self._prompt and self._client is not None and self._client.is_open
        if self._running or not ready:
            self.publish(topic, event)
            return False
        self._add(topic, event)
        self._running = True
        self._loop.spawn(self._deliver(), "publisher", at_once=True)
        return self._client is not None and self._client.is_sent

    def _add(self, topic: str, event: Message) -> None:
        request = events_ttrpc_pb2.ForwardRequest()
        envelope = request.envelope
        now = time.time_ns()
        envelope.timestamp.seconds, envelope.timestamp.nanos = divmod(now, 1_000_000_000)
        envelope.namespace = self._namespace
        envelope.topic = topic
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        if len(self._queue) >= _CAPACITY:
            self._make_room()
        self._queue.append((topic, request.SerializeToString()))

    def _make_room(self) -> None:
        for number, (topic, _) in enumerate(self._queue):
            if topic != _EXIT:
                del self._queue[number]
                self._dropped += 1
                return

    def poke(self) -> None:
        """The daemon is there: tries at once."""
        self._seconds = _FIRST_PAUSE
        if self._pause is not None:
            self._pause.set(None)

    async def settle(self, seconds: float) -> None:
        """Returns when the daemon has taken everything, has turned out to be away, or after so
        long: what it does next then comes after our events, for all who subscribe."""
        if not self._queue or self._pause is not None:
            return
        if self._settled is None:
            self._settled = Future(self._loop)
        gate = self._settled
        timer = self._loop.later(seconds, lambda: gate.set(None))
        await gate
        timer.cancel()

    @property
    def pending(self) -> int:
        """Events that the daemon has not taken yet."""
        return len(self._queue)

    async def _deliver(self) -> None:
        try:
            while self._queue:
                head = self._queue[0]
                try:
                    await self._forward(head[1])
                except InvalidArgument as error:
                    log.error("event refused", topic=head[0], error=error)  # as it ever will be
                except Error as error:
                    if not isinstance(error, Unavailable):
                        log.warning("event not taken", error=error)
                    self._hang_up()
                    self._let_go()
                    await self._wait()
                    continue
                self._seconds = _FIRST_PAUSE
                # A full queue may have dropped it meanwhile.
                if self._queue and self._queue[0] is head:
                    self._queue.popleft()
            if self._dropped:
                log.warning("events were dropped", count=self._dropped)
                self._dropped = 0
        finally:
            self._running = False
            self._let_go()
        self._idle = self._loop.later(_IDLE_SECONDS, self._hang_up)

    async def _forward(self, data: bytes) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._client is None or not self._client.is_open:
            self._client = Client(self._loop, self._address)
        await self._client.call(
            SERVICE,
            "Forward",
            events_ttrpc_pb2.ForwardRequest.FromString(data),
            Empty,
            seconds=_SECONDS,
            metadata={"containerd-namespace-ttrpc": self._namespace},
        )

    async def _wait(self) -> None:
        self._pause = Future(self._loop)
        gate = self._pause
        timer = self._loop.later(self._seconds, lambda: gate.set(None))
        self._seconds = min(self._seconds * 2, _LONGEST_PAUSE)
        await gate
        timer.cancel()
        self._pause = None

    def _let_go(self) -> None:
        if self._settled is not None:
            self._settled.set(None)
            self._settled = None

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
