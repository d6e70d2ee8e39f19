"""Streaming calls: the part that both ends share, and the client's end.

Messages wait in a bounded queue. A peer that sends more than the queue holds before anybody reads
fails the stream with ResourceExhausted instead of holding up the other calls of the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from google.protobuf.message import Message

from supervisord.contracts.errors import Error, FailedPrecondition, ResourceExhausted

from .frames import DATA, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, RESPONSE, Frame, too_large

if TYPE_CHECKING:
    from .client import Client

R = TypeVar("R", bound=Message)

QUEUE = 1024


class Inbox:
    """Serialized messages in order, then the end or an error. One reader at a time."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._error: Error | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._ended

    def put(self, data: bytes) -> None:
        """Raises ResourceExhausted when full, FailedPrecondition after the end."""
        if self._ended:
            raise FailedPrecondition("ttrpc: stream closed")
        if len(self._messages) >= QUEUE:
            raise ResourceExhausted("ttrpc: stream buffer full")
        self._messages.append(data)
        self._arrived.set()

    def end(self, error: Error | None = None) -> None:
        """Nothing more will arrive; only the first end counts."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._arrived.set()

    async def get(self) -> bytes:
        """The next message. Raises the error that ended the stream, else StopAsyncIteration."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()


class ClientStream(Generic[R]):
    """An open streaming call, iterated for what the server sends."""

    def __init__(self, client: Client, stream_id: int, response: type[R], sends: bool) -> None:
        self.stream_id = stream_id
        self._client = client
        self._response = response
        self._sends = sends
        self._inbox = Inbox()

    def __aiter__(self) -> ClientStream[R]:
        return self

    async def __anext__(self) -> R:
        """Raises StopAsyncIteration at the end, the server's error, Unavailable."""
        from .client import parse

        return parse(self._response, await self._inbox.get())

    async def send(self, message: Message) -> None:
        """Sends one message. Raises FailedPrecondition once this side has closed, Unavailable."""
        if not self._sends:
            raise FailedPrecondition("ttrpc: stream closed")
        await self._client.drained()
        self._client.send(self.stream_id, DATA, 0, message.SerializeToString())

    async def close_send(self) -> None:
        """Tells the server that nothing more will be sent."""
        if self._sends:
            self._sends = False
            self._client.send(self.stream_id, DATA, REMOTE_CLOSED | NO_DATA)

    def close(self) -> None:
        """Forgets the call; what still arrives for it is dropped."""
        self.fail(FailedPrecondition("ttrpc: stream closed"))

    def fail(self, error: Error) -> None:
        """Ends the stream with an error for its reader."""
        self._inbox.end(error)
        self._client.forget_stream(self.stream_id)

    def received(self, frame: Frame) -> None:
        """Takes one frame of this stream."""
        from .client import has_data, payload_of

        try:
            if frame.oversized:
                raise too_large(frame.oversized)
            if frame.type == RESPONSE:
                payload = payload_of(frame.data)
                self._inbox.put(payload)
                self._finish()
            elif frame.type == DATA:
                if has_data(frame):
                    self._inbox.put(frame.data)
                if frame.flags & REMOTE_CLOSED:
                    self._finish()
        except Error as error:
            self.fail(error)

    def _finish(self) -> None:
        self._inbox.end()
        self._client.forget_stream(self.stream_id)


def open_client_stream(
    client: Client, data: bytes, response: type[R], *, sends: bool
) -> ClientStream[R]:
    """Sends the request of a streaming call. Raises Unavailable, ResourceExhausted."""
    stream_id = client.open_stream(data, REMOTE_OPEN if sends else REMOTE_CLOSED)
    return ClientStream(client, stream_id, response, sends)
