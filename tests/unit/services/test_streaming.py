"""Streams over a real socket: names, ends, bytes with windows, and the collector."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from protos.containerd.services.streaming.v1 import streaming_pb2 as pb
from protos.containerd.types.transfer import transfer_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from supervisord.contracts.scope import Scope
from supervisord.contracts.streams import Stream
from supervisord.contracts.typed import TypedValue, from_any
from supervisord.services import streaming
from supervisord.services.counters import CallCounters
from supervisord.services.listen import GrpcServer, Listen
from supervisord.services.server import bind
from supervisord.streaming import manager
from supervisord.streaming.conversation import Conversation
from supervisord.streaming.manager import Streams
from supervisord.streaming.octets import MAX_DATA, WINDOW, Sender, received

NS = (("containerd-namespace", "tests"),)
LEASED = (*NS, ("containerd-lease", "held"))
DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Streaming"]
STREAM = f"/{DESCRIPTOR.full_name}/Stream"
SECONDS = 20


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Room:
    """A server of streams and a client of it."""

    def __init__(self, path: str) -> None:
        self.streams = Streams()
        self._calls: list[Any] = []
        service = streaming.StreamingService(self.streams)
        self.server = GrpcServer(Listen(path), [bind(DESCRIPTOR, service, CallCounters())])
        self.channel = grpc.aio.insecure_channel(f"unix:{path}")

    def call(self, metadata: Any = NS) -> Any:
        method = self.channel.stream_stream(
            STREAM, AnyMessage.SerializeToString, AnyMessage.FromString
        )
        call = method(metadata=metadata, timeout=SECONDS)
        self._calls.append(call)
        return call

    async def close(self) -> None:
        while self._calls:  # they hold the channel, whose poller counts as left behind
            call = self._calls.pop()
            call.cancel()
            await call.code()
            del call
        await self.channel.close()
        await self.empty()
        await self.server.stop(0)

    async def open(self, id: str, metadata: Any = NS) -> Any:
        """A stream that has been acknowledged."""
        call = self.call(metadata)
        await call.write(packed(pb.StreamInit(id=id)))
        assert (await call.read()).type_url == "google.protobuf.Empty"
        return call

    async def empty(self) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.streams):  # noqa: ASYNC110 - what is waited for happens elsewhere
                await asyncio.sleep(0.005)


@pytest.fixture
async def streams() -> AsyncIterator[Room]:
    room = Room(str(Path(tempfile.mkdtemp()) / "s.sock"))
    await room.server.start()
    yield room
    await room.close()


async def test_messages_both_ways(streams: Room) -> None:
    call = await streams.open("a")
    stream = streams.streams.get("tests", "a")
    for number in range(20):
        message = packed(pb.StreamInit(id=str(number)))
        await call.write(message)
        assert await stream.receive() == from_any(message)
        await stream.send(TypedValue("x", b"%d" % number))
        assert await call.read() == AnyMessage(type_url="x", value=b"%d" % number)
    await call.done_writing()
    assert await stream.receive() is None
    await stream.send(TypedValue("last", b""))
    await stream.close()
    assert (await call.read()).type_url == "last"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    await streams.empty()


async def test_names(streams: Room) -> None:
    await streams.open("a")
    again = streams.call()
    await again.write(packed(pb.StreamInit(id="a")))
    assert await again.code() is grpc.StatusCode.ALREADY_EXISTS
    assert '"a"' in await again.details()
    await streams.open("a", (("containerd-namespace", "other"),))
    with pytest.raises(NotFound, match='"b"'):
        streams.streams.get("tests", "b")
    assert len(streams.streams) == 2


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (packed(pb.StreamInit(id="")), grpc.StatusCode.INVALID_ARGUMENT),
        (packed(pb.StreamInit(id="x" * 2000)), grpc.StatusCode.INVALID_ARGUMENT),
        (packed(transfer_pb2.Data(data=b"x")), grpc.StatusCode.INVALID_ARGUMENT),
        (
            AnyMessage(type_url="containerd.services.streaming.v1.StreamInit", value=b"\xff"),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (None, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_first_messages(streams: Room, first: Any, code: grpc.StatusCode) -> None:
    call = streams.call()
    if first is not None:
        await call.write(first)
    else:
        await call.done_writing()
    assert await call.code() is code
    assert len(streams.streams) == 0


async def test_a_namespace_is_required(streams: Room) -> None:
    call = streams.call(())
    await call.write(packed(pb.StreamInit(id="a")))
    assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_silence_has_an_end(streams: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "FIRST_SECONDS", 0.05)
    assert await streams.call().code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_there_is_an_end_to_streams(streams: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "MAX_STREAMS", 1)
    await streams.open("a")
    call = streams.call()
    await call.write(packed(pb.StreamInit(id="b")))
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_goes_away(streams: Room) -> None:
    call = await streams.open("a")
    stream = streams.streams.get("tests", "a")
    receiving = asyncio.create_task(stream.receive())
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(Cancelled):
        await receiving
    with pytest.raises(Cancelled):
        await stream.send(TypedValue("x", b""))
    await streams.empty()
    await streams.open("a")


async def test_a_stream_that_the_service_closes(streams: Room) -> None:
    call = await streams.open("a")
    await streams.streams.get("tests", "a").close()
    assert await call.code() is grpc.StatusCode.OK
    await streams.empty()


async def test_a_lease_that_ends(streams: Room) -> None:
    leased = await streams.open("a", LEASED)
    free = await streams.open("b")
    resources = {resource.key: resource for resource in streams.streams.resources()}
    assert (resources["a"].lease, resources["a"].active) == ("held", False)
    assert (resources["b"].lease, resources["b"].active) == ("", True)
    await streams.streams.collect(resources["a"])
    assert await leased.code() is grpc.StatusCode.OK
    with pytest.raises(NotFound):
        streams.streams.get("tests", "a")
    assert not free.done()
    assert streams.streams.get("tests", "b")


# Bytes --------------------------------------------------------------------------------------


class Receiving:
    """A client that takes bytes, as containerd's does."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.data = b""
        self.largest = 0
        self.most = 0

    async def run(self, pause: float = 0) -> None:
        window = 0
        while True:
            if window < WINDOW:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it has ended
                    await self._call.write(packed(transfer_pb2.WindowUpdate(update=WINDOW)))
                window += WINDOW
            message = await self._call.read()
            if message is grpc.aio.EOF:
                return
            data = transfer_pb2.Data.FromString(message.value).data
            window -= len(data)
            assert window >= 0
            self.largest = max(self.largest, len(data))
            self.data += data
            await asyncio.sleep(pause)


async def test_sending_bytes(streams: Room) -> None:
    call = await streams.open("out")
    client = Receiving(call)
    receiving = asyncio.create_task(client.run())
    sender = Sender(streams.streams.get("tests", "out"))
    whole = bytes(range(256)) * 2048
    for start in range(0, len(whole), 100_000):
        await sender.write(whole[start : start + 100_000])
    await sender.close()
    await receiving
    assert client.data == whole and client.largest == MAX_DATA
    assert await call.code() is grpc.StatusCode.OK


async def test_nothing_is_sent_without_a_window(streams: Room) -> None:
    call = await streams.open("out")
    sender = Sender(streams.streams.get("tests", "out"))
    await call.write(packed(transfer_pb2.WindowUpdate(update=10)))
    writing = asyncio.create_task(sender.write(b"x" * 25))
    assert transfer_pb2.Data.FromString((await call.read()).value).data == b"x" * 10
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.05)
    assert not writing.done() and not reading.done()
    await call.write(packed(transfer_pb2.WindowUpdate(update=100)))
    assert transfer_pb2.Data.FromString((await reading).value).data == b"x" * 15
    await writing
    await call.done_writing()
    await asyncio.sleep(0)
    with pytest.raises(Cancelled):
        await sender.write(b"x" * 200)
    await sender.close()


async def test_receiving_bytes(streams: Room) -> None:
    call = await streams.open("in")
    whole = bytes(range(256)) * 2048

    async def send() -> None:
        window, rest = 0, whole
        while rest:
            while window <= 0:
                update = transfer_pb2.WindowUpdate.FromString((await call.read()).value)
                window += update.update
            part, rest = rest[: min(MAX_DATA, window)], rest[min(MAX_DATA, window) :]
            window -= len(part)
            await call.write(packed(transfer_pb2.Data(data=part)))
        await call.done_writing()

    sending = asyncio.create_task(send())
    stream = streams.streams.get("tests", "in")
    assert b"".join([data async for data in received(stream)]) == whole
    await sending
    while await call.read() is not grpc.aio.EOF:  # the last windows
        pass
    assert await call.code() is grpc.StatusCode.OK
    await streams.empty()


async def test_windows_bound_what_waits() -> None:
    conversation = Conversation()
    received_bytes = received(conversation)
    async with aclosing(received_bytes), aclosing(conversation.leave()) as leaving:
        first = asyncio.create_task(received_bytes.asend(None))
        update = transfer_pb2.WindowUpdate.FromString((await anext(leaving)).value)
        assert update.update == WINDOW
        data = packed(transfer_pb2.Data(data=b"x" * MAX_DATA))

        async def endless() -> AsyncIterator[TypedValue]:
            while True:
                taken.append(1)
                yield from_any(data)

        taken: list[int] = []
        arriving = asyncio.create_task(conversation.arrive(endless()))
        await first
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(taken) < 10
        conversation.abandon()
        await arriving


@pytest.mark.parametrize(
    "message",
    [
        packed(pb.StreamInit(id="x")),
        AnyMessage(type_url="containerd.types.transfer.Data", value=b"\xff"),
    ],
)
async def test_what_is_no_data(streams: Room, message: AnyMessage) -> None:
    call = await streams.open("in")
    await call.write(message)
    stream: Stream = streams.streams.get("tests", "in")
    with pytest.raises(InvalidArgument):
        await anext(received(stream))
    await streams.empty()


@pytest.mark.parametrize(
    "message",
    [packed(transfer_pb2.WindowUpdate(update=-1)), packed(transfer_pb2.Data(data=b"x"))],
)
async def test_what_is_no_window(streams: Room, message: AnyMessage) -> None:
    call = await streams.open("out")
    await call.write(message)
    sender = Sender(streams.streams.get("tests", "out"))
    with pytest.raises(InvalidArgument):
        await sender.write(b"x")
    await sender.close()


def test_registering() -> None:
    streams = Streams()
    forget = streams.register(Scope("a"), "x", Conversation())
    with pytest.raises(AlreadyExists):
        streams.register(Scope("a", "lease"), "x", Conversation())
    forget()
    streams.register(Scope("a"), "x", Conversation())
    forget()  # of the first, which has gone
    assert len(streams) == 1
    with pytest.raises(ResourceExhausted), pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "MAX_STREAMS", 1)
        streams.register(Scope("b"), "x", Conversation())
