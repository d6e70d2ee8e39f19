"""Streaming calls: server streams, both ways, errors, ends, a peer that sends too much.

The Task service has no streaming method, so the test describes a service of its own.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

from supervisord.contracts import errors
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.server import Context, Server, bind
from supervisord.ttrpc.stream import QUEUE

NAME = "test.streams.Echo"


@functools.cache
def descriptor() -> Any:
    pool = descriptor_pool.Default()
    file = descriptor_pb2.FileDescriptorProto(
        name="test/streams.proto",
        package="test.streams",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="Echo")
    for name, client, server in (
        ("Count", False, True),
        ("Join", True, False),
        ("Echo", True, True),
    ):
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client,
            server_streaming=server,
        )
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(NAME)


class Echo:
    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def Count(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        for number in range(int(request.value)):
            yield StringValue(value=str(number) if number else "")
        if request.value == "3":
            raise errors.OutOfRange("three is too many")

    async def Join(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        return StringValue(value=",".join([request.value async for request in requests]))

    async def Echo(
        self, requests: AsyncIterator[StringValue], context: Context
    ) -> AsyncIterator[StringValue]:
        await self.go.wait()
        async for request in requests:
            yield StringValue(value=request.value.upper())


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def client(echo: Echo) -> AsyncIterator[Client]:
    ours, theirs = socket.socketpair()
    server = Server([bind(descriptor(), echo)])
    await server.adopt(theirs)
    client = await Client.from_socket(ours)
    yield client
    client.close()
    await client.closed
    await server.close()


async def test_a_server_stream_ends_after_its_messages(client: Client) -> None:
    stream = await client.stream(NAME, "Count", StringValue, StringValue(value="2"))
    assert [message.value async for message in stream] == ["", "1"]


async def test_an_error_ends_a_server_stream(client: Client) -> None:
    stream = await client.stream(NAME, "Count", StringValue, StringValue(value="3"))
    with pytest.raises(errors.OutOfRange, match="three"):
        for _ in range(4):
            await anext(stream)


async def test_a_client_stream(client: Client) -> None:
    stream = await client.stream(NAME, "Join", StringValue)
    for word in ("a", "", "b"):
        await stream.send(StringValue(value=word))
    await stream.close_send()
    assert [message.value async for message in stream] == ["a,,b"]
    with pytest.raises(errors.FailedPrecondition, match="stream closed"):
        await stream.send(StringValue())


async def test_both_ways(client: Client, echo: Echo) -> None:
    echo.go.set()
    stream = await client.stream(NAME, "Echo", StringValue)
    for word in ("a", "b"):
        await stream.send(StringValue(value=word))
        assert (await anext(stream)).value == word.upper()
    await stream.close_send()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_flood_fails_its_stream_and_nothing_else(client: Client) -> None:
    stream = await client.stream(NAME, "Echo", StringValue)
    for _ in range(QUEUE + 1):
        await stream.send(StringValue(value="x"))
    with pytest.raises(errors.InvalidArgument, match="stream buffer full"):
        await anext(stream)
    other = await client.stream(NAME, "Count", StringValue, StringValue(value="1"))
    assert [message.value async for message in other] == [""]


async def test_a_lost_connection_fails_the_stream(client: Client) -> None:
    stream = await client.stream(NAME, "Echo", StringValue)
    client.close()
    with pytest.raises(errors.Unavailable):
        await anext(stream)
