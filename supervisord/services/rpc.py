"""One RPC on one stream: from its headers to its trailers.

Made by ``services.transport`` for each stream that opens. Requests that are one message and whose
method is immediate are answered without a task; every other call is a task of the server's owner,
cancelled when the client gives up, its deadline passes or its connection ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from supervisord.contracts.errors import Internal

from . import messages
from .call import Call
from .server import DEADLINE_EXCEEDED, INTERNAL, Answer, Method

if TYPE_CHECKING:
    from .http2.hpack import Header
    from .transport import Transport


class Rpc:
    """The state of one call; also what ``Call`` reads its metadata from."""

    __slots__ = (
        "_begun",
        "_ended",
        "_headers",
        "_held",
        "_inbox",
        "_method",
        "_more",
        "_reader",
        "_space",
        "_stream",
        "_task",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        stream: int,
        method: Method,
        headers: tuple[Header, ...],
        encoding: str,
        timeout: float | None,
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._method = method
        self._headers = headers
        self._reader = messages.MessageReader(transport.max_receive, encoding)
        self._inbox: deque[bytes] = deque()
        self._held = 0
        self._begun = False
        self._ended = False
        self._more: asyncio.Future[None] | None = None
        self._space: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._timer = transport.loop.call_later(timeout, self._expire)

    # For Call ----------------------------------------------------------------------------

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """What the client sent along."""
        return messages.metadata(self._headers)

    async def send_initial_metadata(self, metadata: object) -> None:
        """Sends the response's headers now."""
        self._begin()
        self._transport.flush()

    # From the transport ------------------------------------------------------------------

    def start(self) -> None:
        """The request's headers are there. A method that reads a stream starts at once."""
        if self._method.streams_in:
            self._spawn(self._requests())

    def receive(self, data: bytes, size: int, ended: bool) -> None:
        """Bytes of the request; ``size`` is what they count for in flow control."""
        try:
            whole = self._reader.feed(data) if data else []
            if ended and self._reader.pending:
                raise messages.Malformed(INTERNAL, "the request ends inside a message")
        except messages.Malformed as error:
            self._transport.consumed(self._stream, size)
            self._fail(error.code, str(error))
            return
        self._ended = ended
        if not self._method.streams_in:
            self._transport.consumed(self._stream, size)
            self._inbox.extend(whole)
            if ended or len(self._inbox) > 1:
                self._one_request()
            return
        self._inbox.extend(whole)
        self._held += size
        if not self._inbox:
            self._give_back()
        _wake(self._more)

    def writable(self) -> None:
        """There is room in the stream's window."""
        _wake(self._space)

    def cancel(self) -> None:
        """The client is gone, or the server stops."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    # The call ----------------------------------------------------------------------------

    def _one_request(self) -> None:
        if len(self._inbox) != 1:
            self._fail(INTERNAL, f"one message was expected, not {len(self._inbox)}")
            return
        try:
            request = self._method.parse(self._inbox.popleft())
        except DecodeError as error:
            self._fail(INTERNAL, f"the request cannot be decoded: {error}")
            return
        if not self._method.immediate:
            self._spawn(request)
            return
        answer = self._method.answer_now(Call(self), request)
        if len(answer[2]) + 5 > self._transport.room(self._stream):
            self._task = self._transport.spawn(self._finish(answer), self._method.path)
        else:
            self._reply(answer)

    def _spawn(self, request: Message | AsyncIterator[Message]) -> None:
        self._task = self._transport.spawn(self._serve(request), self._method.path)

    async def _serve(self, request: Message | AsyncIterator[Message]) -> None:
        if self._method.streams_out:
            answer = await self._method.stream(Call(self), request, self._send)
        else:
            answer = await self._method.answer(Call(self), request)
        await self._finish(answer)

    async def _finish(self, answer: Answer) -> None:
        code, message, reply = answer
        if code or self._method.streams_out:
            self._end(code, message)
        elif len(reply) + 5 <= self._transport.room(self._stream):
            self._reply(answer)
        else:
            try:
                await self._send(reply)
                self._end(code, message)
            except messages.TooLarge as error:
                self._end(error.code, error.message)
        self._transport.flush()

    def _reply(self, answer: Answer) -> None:
        """The whole response at once; there is room for it."""
        code, message, reply = answer
        if code == 0:
            if len(reply) > self._transport.max_send:
                self._end(messages.RESOURCE_EXHAUSTED, self._too_large(reply))
                return
            self._begin()
            self._transport.connection.send(self._stream, messages.framed(reply))
        self._end(code, message)

    async def _send(self, reply: bytes) -> None:
        """Sends one message as fast as the client reads."""
        if len(reply) > self._transport.max_send:
            raise messages.TooLarge(self._too_large(reply))
        self._begin()
        left = memoryview(messages.framed(reply))
        while True:
            sent = self._transport.connection.send(self._stream, left)
            left = left[sent:]
            self._transport.flush()
            await self._transport.drained()
            if not left:
                return
            if not sent:
                self._space = self._transport.loop.create_future()
                await self._space

    def _too_large(self, reply: bytes) -> str:
        limit = self._transport.max_send
        return f"trying to send message larger than max ({len(reply)} vs. {limit})"

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._transport.connection.headers(self._stream, messages.HEADERS)

    def _end(self, code: int, message: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._begun:
            block = messages.status(code, message)
        else:
            block = messages.only_status(code, message)
        self._transport.connection.trailers(self._stream, block)
        self._transport.forget(self._stream)

    def _fail(self, code: int, message: str) -> None:
        """Ends a call because of what its client sent."""
        self._end(code, message)
        if self._task is not None:
            self._task.cancel()

    def _expire(self) -> None:
        self._fail(DEADLINE_EXCEEDED, "context deadline exceeded")
        self._transport.flush()

    # A stream of requests ----------------------------------------------------------------

    async def _requests(self) -> AsyncIterator[Message]:
        while True:
            while not self._inbox:
                if self._ended:
                    return
                self._more = self._transport.loop.create_future()
                await self._more
            data = self._inbox.popleft()
            if not self._inbox:
                self._give_back()
            self._method.counters.received += 1
            try:
                request = self._method.parse(data)
            except DecodeError as error:
                raise Internal(f"the request cannot be decoded: {error}") from error
            yield request

    def _give_back(self) -> None:
        if self._held:
            self._transport.consumed(self._stream, self._held)
            self._held = 0
            self._transport.flush()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
