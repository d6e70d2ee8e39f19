"""containerd.services.events.v1: publishing, forwarding and subscribing."""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.containerd.services.events.v1 import events_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.events import Envelope, Exchange
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.typed import from_any

from .call import Call
from .wire import nanoseconds, required, timestamp, to_any

_RECENT = 256


class _Serialized:
    """The bytes of recent envelopes: every subscriber gets the same ones, most at the same time.
    Found by identity; an envelope in here cannot go away, so no other has its identity."""

    def __init__(self) -> None:
        self._recent: dict[int, tuple[Envelope, bytes]] = {}

    def get(self, envelope: Envelope) -> bytes:
        found = self._recent.get(id(envelope))
        if found is not None:
            return found[1]
        data = types_pb2.Envelope(
            timestamp=timestamp(envelope.timestamp),
            namespace=envelope.namespace,
            topic=envelope.topic,
            event=to_any(envelope.event),
        ).SerializeToString()
        if len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[id(envelope)] = (envelope, data)
        return data


class EventsService:
    """Publish needs a namespace; Forward carries one in its envelope; Subscribe sees all."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._serialized = _Serialized()

    async def publish(self, call: Call, request: pb.PublishRequest) -> None:
        self._exchange.publish(call.namespace, request.topic, from_any(request.event))

    async def forward(self, call: Call, request: pb.ForwardRequest) -> None:
        required(request.HasField("envelope"), "envelope")
        envelope = request.envelope
        check_identifier(envelope.namespace, "envelope.namespace")
        when = nanoseconds(envelope.timestamp)
        if when <= 0:
            raise InvalidArgument("envelope.timestamp: must be given")
        self._exchange.forward(
            Envelope(when, envelope.namespace, envelope.topic, from_any(envelope.event))
        )

    async def subscribe(self, call: Call, request: pb.SubscribeRequest) -> AsyncIterator[bytes]:
        events = self._exchange.subscribe(tuple(request.filters))
        try:
            await call.begin()
            async for envelope in events:
                yield self._serialized.get(envelope)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
