"""The answering end of ttrpc: services bound to implementations, served on a unix socket.

``bind`` makes a Service from a protobuf service descriptor and an object that has a coroutine
per method, ``Server`` serves any number of them. Every request runs in a task of its own; when
its deadline passes or its connection ends, the task is cancelled, as ttrpc's own server does. A
handler that must not stop half-way shields its work (``TaskOwner.shielded``).

A domain error becomes its status; any other exception is logged and becomes Internal.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from protos.ttrpc import ttrpc_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import (
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)

from .connection import Connection
from .frames import DATA, MAX_DATA, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE, Frame, too_large
from .stream import Inbox

log = logging.getLogger(__name__)

MAX_REQUESTS = 4096
"""Requests of one connection that may run at a time."""

_HANG_UP = 1.0


@dataclass(frozen=True, slots=True)
class Context:
    """What came with a request besides its message; ``timeout`` in seconds, None for none."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One bound method: unary ``async def M(request, context) -> response``; a streaming client
    passes an async iterator of requests; a streaming server is an async generator."""

    handler: Any
    request: type[Message]
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True, slots=True)
class Service:
    """A bound service: its full name and methods."""

    name: str
    methods: Mapping[str, Method]


def bind(descriptor: ServiceDescriptor, implementation: object, name: str = "") -> Service:
    """Binds the methods that ``implementation`` has; the others are Unimplemented. ``name``
    replaces the descriptor's full name."""
    methods = {
        method.name: _method(method, handler)
        for method in descriptor.methods
        if (handler := getattr(implementation, method.name, None)) is not None
    }
    return Service(name or descriptor.full_name, methods)


def _method(descriptor: MethodDescriptor, handler: Any) -> Method:
    return Method(
        handler,
        GetMessageClass(descriptor.input_type),
        descriptor.client_streaming,
        descriptor.server_streaming,
    )


class Server:
    """Serves services on any number of sockets until ``close``."""

    def __init__(self, services: Sequence[Service], name: str = "ttrpc") -> None:
        self._services = {service.name: service for service in services}
        if len(self._services) != len(services):
            raise ValueError("two ttrpc services have one name")
        self._owner = TaskOwner(name)
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[_ServerConnection] = set()
        self._done = asyncio.Event()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def requests(self) -> int:
        """How many requests are running."""
        return len(self._owner)

    async def start(self, sock: socket.socket) -> None:
        """Begins to serve a listening unix socket, and returns."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(self._protocol, sock=sock)
        self._listeners.append(server)

    async def serve(self, sock: socket.socket) -> None:
        """Serves a listening unix socket until ``close`` is called."""
        await self.start(sock)
        await self._done.wait()

    async def adopt(self, sock: socket.socket) -> None:
        """Serves one connected socket."""
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, sock)

    async def close(self, grace: float = 0.0) -> None:
        """Accepts nobody any more, gives running requests ``grace`` seconds to answer, then ends
        all connections."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self._owner.close(grace)
        open_connections = list(self._connections)
        for connection in open_connections:
            connection.hang_up()
        if open_connections:
            gone = [connection.gone for connection in open_connections]
            await asyncio.wait(gone, timeout=_HANG_UP)
        for connection in list(self._connections):  # a peer that does not read its answers
            connection.abort()
            await connection.gone
        self._done.set()

    def _protocol(self) -> _ServerConnection:
        return _ServerConnection(self._services, self._owner, self._connections)


class _ServerConnection(Connection):
    def __init__(
        self,
        services: Mapping[str, Service],
        owner: TaskOwner,
        connections: set[_ServerConnection],
    ) -> None:
        super().__init__()
        self._services = services
        self._owner = owner
        self._all = connections
        self._last_stream = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._inboxes: dict[int, Inbox] = {}
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # Connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.add(self)

    def pause_writing(self) -> None:
        """A peer that does not read its answers is not read from either."""
        super().pause_writing()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def lost(self, error: Exception | None) -> None:
        self._all.discard(self)
        for task in list(self._tasks.values()):
            task.cancel()
        self.gone.set_result(None)

    def received(self, frame: Frame) -> None:
        try:
            if frame.oversized:
                raise too_large(frame.oversized)
            if frame.stream_id % 2 != 1:
                raise InvalidArgument("StreamID must be odd for client initiated streams")
            if frame.type == REQUEST:
                self._request(frame)
            elif frame.type == DATA:
                self._data(frame)
            # other types are left to later versions of the protocol
        except Error as error:
            self._answer(frame.stream_id, error=error)

    # Requests -----------------------------------------------------------------------------

    def _request(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if stream_id <= self._last_stream:
            raise InvalidArgument("StreamID cannot be re-used and must increment")
        self._last_stream = stream_id
        try:
            request = ttrpc_pb2.Request.FromString(frame.data)
        except DecodeError as error:
            raise InvalidArgument(f"unmarshal request error: {error}") from error
        service = self._services.get(request.service)
        if service is None:
            raise Unimplemented(f"service {request.service}")
        method = service.methods.get(request.method)
        if method is None:
            raise Unimplemented(f"method {request.method}")
        if len(self._tasks) >= MAX_REQUESTS:
            raise ResourceExhausted(f"more than {MAX_REQUESTS} requests at a time")
        argument: Any
        if method.client_streaming:
            inbox = self._inboxes[stream_id] = Inbox()
            if request.payload:
                inbox.put(request.payload)
            if frame.flags & REMOTE_CLOSED:
                inbox.end()
            argument = _requests(inbox, method.request)
        else:
            argument = _decode(method.request, request.payload)
        context = Context(
            {pair.key: pair.value for pair in reversed(request.metadata)},
            request.timeout_nano / 1e9 if request.timeout_nano > 0 else None,
        )
        work = self._run(stream_id, method, argument, context)
        try:
            task = self._owner.spawn(work, request.method)
        except RuntimeError as error:  # it gives what runs a moment to end, and takes no more
            raise Unavailable("the server is closing") from error
        self._tasks[stream_id] = task
        task.add_done_callback(lambda _: self._forget(stream_id))

    def _forget(self, stream_id: int) -> None:
        self._tasks.pop(stream_id, None)
        self._inboxes.pop(stream_id, None)

    def _data(self, frame: Frame) -> None:
        inbox = self._inboxes.get(frame.stream_id)
        if inbox is None:
            raise InvalidArgument("StreamID is no longer active")
        if not frame.flags & NO_DATA:
            try:
                inbox.put(frame.data)
            except Error as error:
                raise InvalidArgument(f"data handling error: {error}") from error
        if frame.flags & REMOTE_CLOSED:
            inbox.end()

    async def _run(self, stream_id: int, method: Method, argument: Any, context: Context) -> None:
        try:
            async with asyncio.timeout(context.timeout):
                if method.server_streaming:
                    await self._stream_out(stream_id, method.handler(argument, context))
                    self.send(stream_id, DATA, REMOTE_CLOSED | NO_DATA)
                else:
                    response = await method.handler(argument, context)
                    self._answer(stream_id, response.SerializeToString())
        except Error as error:
            self._answer(stream_id, error=error)
        except TimeoutError:
            self._answer(stream_id, error=DeadlineExceeded("context deadline exceeded"))
        except Exception as error:
            log.exception("ttrpc: a handler failed")
            self._answer(stream_id, error=Internal(f"{type(error).__name__}: {error}"))

    async def _stream_out(self, stream_id: int, responses: AsyncIterator[Message]) -> None:
        async for response in responses:
            await self.drained()
            self.send(stream_id, DATA, 0, response.SerializeToString())

    def _answer(self, stream_id: int, payload: bytes = b"", error: Error | None = None) -> None:
        response = ttrpc_pb2.Response(payload=payload)
        if error is not None:
            response.status.code = error.code
            response.status.message = error.message
        data = response.SerializeToString()
        if len(data) > MAX_DATA:
            self._answer(stream_id, error=too_large(len(data)))
        else:
            self.send(stream_id, RESPONSE, 0, data)


async def _requests(inbox: Inbox, kind: type[Message]) -> AsyncIterator[Message]:
    while True:
        try:
            data = await inbox.get()
        except StopAsyncIteration:
            return
        yield _decode(kind, data)


def _decode(kind: type[Message], data: bytes) -> Message:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Internal(f"ttrpc: error unmarshalling payload: {error}") from error
