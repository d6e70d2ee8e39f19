"""One stream: what a client sends and is sent, between its call and the service that has its id.

The call's side (``services.streaming``) puts in what arrives and takes out what leaves; the other
side is contracts.streams.Stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from supervisord.contracts.errors import Cancelled
from supervisord.contracts.typed import TypedValue

from .channel import Channel

_LIMIT = 4
"""Messages that may wait in each direction; bytes are bounded by the windows of ``octets``."""


class Conversation:
    """A stream with both of its sides."""

    def __init__(self) -> None:
        self._arriving: Channel[TypedValue] = Channel(_LIMIT)
        self._leaving: Channel[TypedValue] = Channel(_LIMIT)

    # The service's side -------------------------------------------------------------------

    async def send(self, value: TypedValue) -> None:
        """See the contract."""
        await self._leaving.put(value)

    async def receive(self) -> TypedValue | None:
        """See the contract."""
        return await self._arriving.get()

    async def close(self) -> None:
        """See the contract."""
        self._leaving.finish()
        self._arriving.fail(Cancelled("the stream is closed"))

    # The call's side ----------------------------------------------------------------------

    async def arrive(self, values: AsyncIterator[TypedValue]) -> None:
        """Takes in all that the client sends, no faster than it is received."""
        try:
            async for value in values:
                await self._arriving.put(value)
        except Cancelled:
            return  # closed here: what else comes is for nobody
        self._arriving.finish()

    async def leave(self) -> AsyncGenerator[TypedValue, None]:
        """What is sent to the client, until the stream is closed."""
        while (value := await self._leaving.get()) is not None:
            yield value

    def abandon(self) -> None:
        """The call is over, however it ended."""
        gone = Cancelled("the client of the stream is gone: context canceled")
        self._arriving.fail(gone)
        self._leaving.fail(gone)
