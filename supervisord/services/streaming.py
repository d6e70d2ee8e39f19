"""containerd.services.streaming.v1: streams that clients open for other services to use.

The first message names the stream; an Empty comes back once it can be found under that name. The
call lasts as long as the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from protos.containerd.services.streaming.v1 import streaming_pb2 as pb
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import DeadlineExceeded, InvalidArgument
from supervisord.contracts.streams import StreamManager
from supervisord.contracts.typed import TypedValue, from_any, pack
from supervisord.streaming.conversation import Conversation

from .call import Call

FIRST_SECONDS = 30.0
"""How long a call may be open before it says which stream it is."""


class StreamingService:
    """Registers each call's stream for as long as it lasts."""

    def __init__(self, manager: StreamManager) -> None:
        self._manager = manager

    async def stream(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        id = await _first(requests)
        conversation = Conversation()
        forget = self._manager.register(call.scope, id, conversation)
        owner = TaskOwner("stream")
        try:
            owner.spawn(conversation.arrive(_values(requests)), id)
            yield _any(pack(Empty()))
            async for value in conversation.leave():
                yield _any(value)
        finally:
            forget()
            conversation.abandon()
            await owner.close()


async def _first(requests: AsyncIterator[Any]) -> str:
    """The id of the stream. Raises InvalidArgument, DeadlineExceeded."""
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            first = await anext(requests)
    except StopAsyncIteration:
        raise InvalidArgument("stream: the first message must name it") from None
    except TimeoutError:
        raise DeadlineExceeded(f"stream: no first message in {FIRST_SECONDS:g} s") from None
    name = pb.StreamInit.DESCRIPTOR.full_name
    if first.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"stream: the first message must be a {name}")
    try:
        return pb.StreamInit.FromString(first.value).id
    except DecodeError as error:
        raise InvalidArgument(f"stream: malformed {name}: {error}") from error


async def _values(requests: AsyncIterator[Any]) -> AsyncIterator[TypedValue]:
    async for request in requests:
        yield from_any(request)


def _any(value: TypedValue) -> Any:
    return Any(type_url=value.type_url, value=value.value)
