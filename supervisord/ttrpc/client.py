"""The calling end of ttrpc: many calls at a time over one connection.

Made with ``Client.connect(path)`` or ``Client.from_socket(sock)``. A call ends with its response,
with its deadline (DeadlineExceeded), or with the connection (Unavailable); the peer's status
comes back as the domain error that it stands for. It never reconnects: whoever owns a client
watches ``closed`` and decides.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from protos.ttrpc import ttrpc_pb2
from supervisord.contracts.errors import DataLoss, DeadlineExceeded, Unavailable, from_code

from .connection import Connection
from .frames import MAX_DATA, NO_DATA, REQUEST, RESPONSE, Frame, too_large

if TYPE_CHECKING:
    from .stream import ClientStream

R = TypeVar("R", bound=Message)

_CONNECT_TIMEOUT = 5.0
_LAST_STREAM = (1 << 32) - 1


class Client(Connection):
    """An open connection to a ttrpc server."""

    def __init__(self, peer: str = "") -> None:
        super().__init__()
        self.peer = peer
        self._next = 1
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._streams: dict[int, ClientStream[Message]] = {}
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: str, *, timeout: float = _CONNECT_TIMEOUT) -> Client:  # noqa: ASYNC109
        """Connects to the unix socket at ``path`` (a ``unix://`` prefix and abstract addresses
        ``@name`` are understood).

        Raises Unavailable when nobody answers, DeadlineExceeded after ``timeout`` seconds."""
        path = path.removeprefix("unix://")
        address = "\0" + path[1:] if path.startswith("@") else path
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, client = await loop.create_unix_connection(lambda: cls(path), address)
        except TimeoutError:
            raise DeadlineExceeded(
                f"ttrpc: connecting to {path}: no answer in {timeout} s"
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"ttrpc: connecting to {path}: {error}") from error
        return client

    @classmethod
    async def from_socket(cls, sock: socket.socket, peer: str = "") -> Client:
        """Takes over a connected socket."""
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_unix_connection(lambda: cls(peer), sock=sock)
        except OSError as error:
            raise Unavailable(f"ttrpc: {peer or 'socket'}: {error}") from error
        return client

    @property
    def closed(self) -> Awaitable[None]:
        """Done once the connection has ended. Any number may await it, and be cancelled."""
        return asyncio.shield(self._closed)

    def close(self) -> None:
        """Ends the connection; open calls fail with Unavailable."""
        self.hang_up()

    async def wait_closed(self) -> None:
        """Waits for the end of the connection."""
        await self.closed

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is told to the peer
        metadata: Mapping[str, str] | None = None,
    ) -> R:
        """One unary call; ``timeout`` in seconds, told to the peer too. None waits for as long
        as the connection lives.

        Raises the peer's error, DeadlineExceeded, Unavailable (connection lost), DataLoss (an
        answer that does not parse), ResourceExhausted (a message over 4 MiB)."""
        data = _request(service, method, request.SerializeToString(), timeout, metadata)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stream_id = self.open_stream(data, 0)
        self._calls[stream_id] = answer
        try:
            if timeout is None:
                raw = await answer
            else:
                async with asyncio.timeout(timeout):
                    raw = await answer
        except TimeoutError:
            raise DeadlineExceeded(f"{service}/{method}: no answer in {timeout} s") from None
        finally:
            self._calls.pop(stream_id, None)
        return parse(response, payload_of(raw))

    def open_stream(self, data: bytes, flags: int) -> int:
        """Sends a request on a new stream and answers the stream's id.

        Raises Unavailable, ResourceExhausted."""
        if len(data) > MAX_DATA:
            raise too_large(len(data))
        if self.is_lost or self._next > _LAST_STREAM:
            raise self._unavailable()
        stream_id = self._next
        self._next += 2
        self.send(stream_id, REQUEST, flags, data)
        return stream_id

    async def stream(
        self,
        service: str,
        method: str,
        response: type[R],
        request: Message | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> ClientStream[R]:
        """Opens a streaming call: with ``request`` the server streams its answers to that one
        message; without it both sides may send. Raises Unavailable, ResourceExhausted."""
        from .stream import open_client_stream

        payload = b"" if request is None else request.SerializeToString()
        data = _request(service, method, payload, None, metadata)
        stream = open_client_stream(self, data, response, sends=request is None)
        self._streams[stream.stream_id] = stream  # type: ignore[assignment]
        return stream

    def forget_stream(self, stream_id: int) -> None:
        """A streaming call is over; later frames of it are dropped."""
        self._streams.pop(stream_id, None)

    # Connection ---------------------------------------------------------------------------

    def received(self, frame: Frame) -> None:
        """Hands a frame to the call or stream that waits for it; nobody's frames are dropped
        (their callers gave up)."""
        call = self._calls.get(frame.stream_id)
        if call is not None:
            if call.done():
                return
            if frame.oversized:
                call.set_exception(too_large(frame.oversized))
            elif frame.type != RESPONSE:
                call.set_exception(
                    DataLoss(f"ttrpc: protocol error: frame type {frame.type} on a unary call")
                )
            else:
                call.set_result(frame.data)
            return
        stream = self._streams.get(frame.stream_id)
        if stream is not None:
            stream.received(frame)

    def lost(self, error: Exception | None) -> None:
        """Fails all open calls."""
        for call in self._calls.values():
            if not call.done():
                call.set_exception(self._unavailable(error))
        for stream in list(self._streams.values()):
            stream.fail(self._unavailable(error))
        if not self._closed.done():
            self._closed.set_result(None)

    def _unavailable(self, error: Exception | None = None) -> Unavailable:
        reason = f": {error}" if error else ""
        return Unavailable(f"ttrpc: closed{f' ({self.peer})' if self.peer else ''}{reason}")


def _request(
    service: str,
    method: str,
    payload: bytes,
    timeout: float | None,
    metadata: Mapping[str, str] | None,
) -> bytes:
    message = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    if timeout is not None:
        message.timeout_nano = max(1, int(timeout * 1e9))
    for key, value in (metadata or {}).items():
        message.metadata.add(key=key, value=value)
    return message.SerializeToString()


def payload_of(raw: bytes) -> bytes:
    """The payload of a serialized Response; raises its error, or DataLoss."""
    answer = parse(ttrpc_pb2.Response, raw)
    if answer.HasField("status") and answer.status.code:
        raise from_code(answer.status.code, answer.status.message)
    return answer.payload


def parse(kind: type[R], data: bytes) -> R:
    """Parses a message of the peer. Raises DataLoss."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise DataLoss(f"ttrpc: malformed {kind.DESCRIPTOR.full_name}: {error}") from error


def has_data(frame: Frame) -> bool:
    """Whether a data frame carries a message (an empty one counts)."""
    return not frame.flags & NO_DATA
