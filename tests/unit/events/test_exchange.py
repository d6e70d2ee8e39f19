"""The exchange: order, filters, bounds, and what is refused."""

from __future__ import annotations

import asyncio
import time

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from protos.containerd.events import events_pb2 as ev
from supervisord.contracts.errors import InvalidArgument, ResourceExhausted
from supervisord.contracts.events import Envelope
from supervisord.contracts.typed import TypedValue, pack
from supervisord.events import fields
from supervisord.events.exchange import Exchange, Subscription


async def take(subscription: Subscription, count: int) -> list[Envelope]:
    return [await asyncio.wait_for(anext(subscription), 2) for _ in range(count)]


def exit_event(id: str, exec_id: str = "") -> ev.TaskExit:
    return ev.TaskExit(container_id=id, id=exec_id or id, exit_status=3)


async def test_everybody_gets_everything_in_order() -> None:
    exchange = Exchange()
    exchange.publish("ns", "/before", ev.TaskOOM())
    first, second = exchange.subscribe(), exchange.subscribe([])
    before = time.time_ns()
    for number in range(5):
        exchange.publish("ns", "/tasks/exit", exit_event(f"c{number}"))
    for subscription in (first, second):
        events = await take(subscription, 5)
        payloads = [ev.TaskExit.FromString(event.event.value) for event in events]
        assert [payload.container_id for payload in payloads] == [f"c{n}" for n in range(5)]
        assert events[0].event.type_url == "containerd.events.TaskExit"
        assert before <= events[0].timestamp <= time.time_ns()
        assert (events[0].namespace, events[0].topic) == ("ns", "/tasks/exit")
    assert exchange.published == 6


async def test_a_waiting_subscriber_is_woken() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    exchange.publish("ns", "/a", ev.TaskOOM())
    assert (await waiting).topic == "/a"


@pytest.mark.parametrize(
    ("filters", "topics"),
    [
        (['topic=="/tasks/exit"'], ["/tasks/exit", "/tasks/exit"]),
        (["topic~=|^/tasks/.*|"], ["/tasks/exit", "/tasks/create", "/tasks/exit"]),
        (["namespace==other"], ["/tasks/exit"]),
        (["event.container_id==web"], ["/tasks/exit", "/tasks/create", "/tasks/exit"]),
        (['topic=="/tasks/exit",event.id==x1'], ["/tasks/exit"]),
        (['event.labels."a.b"==c'], ["/namespaces/create"]),
        (["event.labels.a.b==c"], ["/namespaces/create"]),
        (['event.io.stdin=="/in"'], ["/tasks/create"]),
        (["event.io.terminal==true"], ["/tasks/create"]),
        (["event.io.terminal"], ["/tasks/create"]),
        (["event.runtime.name==r"], ["/containers/create"]),
        (["event.runtime.options.container_id==inner"], ["/containers/create"]),
        (["event.exit_status==3"], []),
        (["event"], []),
        (["timestamp"], []),
        (['topic=="/nothing"', "event.id==x1"], ["/tasks/exit"]),
        (["event.container_id!=web"], ["/namespaces/create", "/containers/create", "/odd"]),
    ],
)
async def test_filters(filters: list[str], topics: list[str]) -> None:
    exchange = Exchange()
    subscription = exchange.subscribe(filters)
    exchange.publish("ns", "/tasks/exit", exit_event("web"))
    exchange.publish(
        "ns",
        "/tasks/create",
        ev.TaskCreate(container_id="web", io=ev.TaskIO(stdin="/in", terminal=True)),
    )
    exchange.publish("other", "/tasks/exit", exit_event("web", "x1"))
    exchange.publish("ns", "/namespaces/create", ev.NamespaceCreate(labels={"a.b": "c"}))
    options = Any(type_url="containerd.events.TaskOOM", value=b"\n\x05inner")
    runtime = ev.ContainerCreate.Runtime(name="r", options=options)
    exchange.publish("ns", "/containers/create", ev.ContainerCreate(runtime=runtime))
    exchange.publish("ns", "/odd", TypedValue("application/json", b"{}"))
    assert [event.topic for event in await take(subscription, len(topics))] == topics
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(subscription)


async def test_a_slow_subscriber_ends_and_the_others_go_on() -> None:
    exchange = Exchange(queue=3)
    slow, quick = exchange.subscribe(), exchange.subscribe()
    for _ in range(4):
        exchange.publish("ns", "/a", ev.TaskOOM())
        await take(quick, 1)
    assert exchange.subscribers == 1
    await take(slow, 3)
    with pytest.raises(ResourceExhausted, match="more than 3 events behind"):
        await anext(slow)
    exchange.publish("ns", "/b", ev.TaskOOM())
    assert (await take(quick, 1))[0].topic == "/b"


async def test_closing() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    await subscription.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert exchange.subscribers == 0


async def test_a_payload_is_decoded_once_and_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[TypedValue] = []
    real = fields.decode

    def counted(value: TypedValue) -> Message | None:
        calls.append(value)
        return real(value)

    monkeypatch.setattr(fields, "decode", counted)
    exchange = Exchange()
    exchange.subscribe(['topic=="/a"'])
    exchange.publish("ns", "/a", exit_event("web"))
    assert not calls
    for _ in range(3):
        exchange.subscribe(["event.container_id==web,event.id==web"])
    exchange.publish("ns", "/a", exit_event("web"))
    assert len(calls) == 1


@pytest.mark.parametrize("topic", ["", "a", "/", "/a//b", "/a/", "/a b", "/" + "x" * 77])
async def test_malformed_topics(topic: str) -> None:
    exchange = Exchange()
    with pytest.raises(InvalidArgument, match="topic"):
        exchange.publish("ns", topic, ev.TaskOOM())
    with pytest.raises(InvalidArgument, match="topic"):
        exchange.forward(Envelope(1, "ns", topic, pack(ev.TaskOOM())))


async def test_other_bad_input() -> None:
    exchange = Exchange()
    with pytest.raises(InvalidArgument, match="namespace"):
        exchange.publish("", "/a", ev.TaskOOM())
    with pytest.raises(InvalidArgument, match="timestamp"):
        exchange.forward(Envelope(0, "ns", "/a", pack(ev.TaskOOM())))
    with pytest.raises(InvalidArgument):
        exchange.subscribe(["=="])
    assert exchange.subscribers == 0
