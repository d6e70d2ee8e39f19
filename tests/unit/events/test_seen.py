"""Events that shims tell twice."""

from __future__ import annotations

from supervisord.contracts.events import Envelope
from supervisord.contracts.typed import TypedValue
from supervisord.events.exchange import Exchange
from supervisord.events.seen import Seen


def envelope(topic: str, when: int, value: bytes = b"x", namespace: str = "ns") -> Envelope:
    return Envelope(when, namespace, topic, TypedValue("t", value))


def test_the_same_event_comes_once() -> None:
    seen = Seen()
    assert not seen.again(envelope("/tasks/paused", 1))
    assert seen.again(envelope("/tasks/paused", 1))
    assert not seen.again(envelope("/tasks/paused", 2))
    assert not seen.again(envelope("/tasks/paused", 1, namespace="other"))
    assert not seen.again(envelope("/tasks/resumed", 1))


def test_an_exit_is_the_same_whenever_it_is_told() -> None:
    seen = Seen()
    assert not seen.again(envelope("/tasks/exit", 1))
    assert seen.again(envelope("/tasks/exit", 2))
    assert not seen.again(envelope("/tasks/exit", 2, b"y"))


def test_clients_may_repeat_themselves() -> None:
    seen = Seen()
    assert not any(seen.again(envelope("/my/topic", 1)) for _ in range(3))


def test_it_forgets_the_oldest() -> None:
    seen = Seen(2)
    for when in (1, 2, 3):
        assert not seen.again(envelope("/tasks/oom", when))
    assert seen.again(envelope("/tasks/oom", 3))
    assert not seen.again(envelope("/tasks/oom", 1))


async def test_the_exchange_asks() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    for when in (1, 1, 2):
        exchange.forward(envelope("/tasks/oom", when))
    await subscription.__anext__()
    assert (await subscription.__anext__()).timestamp == 2
    assert exchange.published == 2
