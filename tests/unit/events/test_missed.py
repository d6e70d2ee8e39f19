"""What was missed while no daemon ran reaches those who come back in time, and only those."""

from __future__ import annotations

import time

from supervisord.contracts.events import Envelope
from supervisord.contracts.typed import TypedValue
from supervisord.events.exchange import Exchange
from supervisord.events.missed import CAPACITY, Missed


def envelope(timestamp: int, topic: str = "/tasks/exit") -> Envelope:
    return Envelope(timestamp, "ns", topic, TypedValue("x", b""))


async def test_an_event_of_the_time_before_comes_first() -> None:
    exchange = Exchange()
    before, after = envelope(time.time_ns() - 10**9), envelope(time.time_ns() + 10**9)
    exchange.forward(before)
    exchange.forward(after)
    subscription = exchange.subscribe(['topic=="/tasks/exit"'])
    exchange.publish("ns", "/tasks/exit", TypedValue("y", b""))
    assert await anext(subscription) == before
    assert (await anext(subscription)).event.type_url == "y"
    other = exchange.subscribe(['topic=="/tasks/oom"'])
    exchange.publish("ns", "/tasks/oom", TypedValue("z", b""))
    assert (await anext(other)).event.type_url == "z"
    await exchange.close()


def test_only_for_a_while_and_only_so_many() -> None:
    missed = Missed()
    for number in range(CAPACITY + 5):
        missed.add(envelope(number + 1))
    assert missed.events()[0].timestamp == 6
    assert len(missed.events()) == CAPACITY
    late = Missed(seconds=0)
    late.add(envelope(1))
    assert late.events() == ()
