"""Bytes over a stream, with windows: the receiver says how many it takes, the sender keeps to it.

The messages are ``containerd.types.transfer.Data`` and ``WindowUpdate``, in containerd's sizes: at
most 32 KiB a message, and a receiver that grants 64 KiB whenever less than that is open. The sender
ends the bytes by ending the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from protos.containerd.types.transfer import transfer_pb2 as pb
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Cancelled, InvalidArgument
from supervisord.contracts.streams import Stream
from supervisord.contracts.typed import TypedValue, pack

from .channel import Channel

M = TypeVar("M", bound=Message)

MAX_DATA = 32 << 10
WINDOW = 2 * MAX_DATA


async def received(stream: Stream) -> AsyncGenerator[bytes, None]:
    """The bytes that the client sends; closes the stream at their end, or when the caller stops.

    Raises Cancelled when the client goes away before it has ended them, InvalidArgument for a
    message of another kind."""
    window = 0
    try:
        while True:
            if window < WINDOW:
                await stream.send(pack(pb.WindowUpdate(update=WINDOW)))
                window += WINDOW
            value = await stream.receive()
            if value is None:
                return
            data = _unpacked(value, pb.Data).data
            window -= len(data)
            if data:
                yield data
    finally:
        await stream.close()


class Sender:
    """Sends bytes to the client. ``close`` it in any case: that tells the client the end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0
        self._updates: Channel[int] = Channel(1)
        self._owner = TaskOwner("sender")
        self._owner.spawn(self._listen(), "windows")

    async def write(self, data: bytes) -> None:
        """Returns when all of it is on its way. Raises Cancelled when the client is gone or takes
        no more, InvalidArgument for a message that is no window."""
        view = memoryview(data)
        while view:
            while self._window <= 0:
                update = await self._updates.get()
                if update is None:
                    raise Cancelled("the client of the stream takes no more")
                self._window += update
            part = view[: min(MAX_DATA, self._window)]
            await self._stream.send(pack(pb.Data(data=bytes(part))))
            self._window -= len(part)
            view = view[len(part) :]

    async def close(self) -> None:
        """Ends the stream after what was written."""
        await self._stream.close()
        await self._owner.close()

    async def _listen(self) -> None:
        try:
            while (value := await self._stream.receive()) is not None:
                update = _unpacked(value, pb.WindowUpdate).update
                if update < 0:
                    raise InvalidArgument(f"update: {update} is negative")
                await self._updates.put(update)
        except (Cancelled, InvalidArgument) as error:
            self._updates.fail(error)
        else:
            self._updates.finish()


def _unpacked(value: TypedValue, kind: type[M]) -> M:
    """Raises InvalidArgument."""
    name = kind.DESCRIPTOR.full_name
    if value.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"stream: {value.type_url!r} came where {name} is expected")
    try:
        return kind.FromString(value.value)
    except DecodeError as error:
        raise InvalidArgument(f"stream: malformed {name}: {error}") from error
