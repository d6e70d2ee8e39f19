"""The driver of one client's connection: an asyncio protocol around ``http2.Connection``.

Finds the method of each stream that opens, hands it its bytes, and writes what collects. While the
client does not read, nothing of it is read either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from supervisord.aio.owner import TaskOwner

from . import messages
from .http2.connection import Connection, Data, Ended, Event, Opened, Reset, Writable
from .rpc import Rpc
from .server import Method

log = logging.getLogger(__name__)


class Transport(asyncio.Protocol):
    """One connection."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        owner: TaskOwner,
        connections: set[Transport],
        max_receive: int,
        max_send: int,
    ) -> None:
        self.connection = Connection()
        self.loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.max_receive = max_receive
        self.max_send = max_send
        self._methods = methods
        self._owner = owner
        self._connections = connections
        self._rpcs: dict[int, Rpc] = {}
        self._socket: asyncio.Transport | None = None
        self._drain: asyncio.Future[None] | None = None

    # From asyncio ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a socket's is one)
        self._socket = transport
        self._connections.add(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.connection.receive(data):
            self._handle(event)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._socket = None
        self._connections.discard(self)
        for rpc in self._rpcs.values():
            rpc.cancel()
        self._rpcs.clear()
        self.resume_writing()
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._drain = self._drain or self.loop.create_future()
        if self._socket is not None:
            self._socket.pause_reading()

    def resume_writing(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()

    # For calls ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes what has collected."""
        out = self.connection.take()
        if out and self._socket is not None:
            self._socket.write(out)

    async def drained(self) -> None:
        """Waits while more than enough is on its way to the client."""
        if self._drain is not None:
            await asyncio.shield(self._drain)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that the server owns."""
        return self._owner.spawn(work, name)

    def room(self, stream: int) -> int:
        """Bytes that may be sent on the stream now."""
        return self.connection.room(stream)

    def consumed(self, stream: int, size: int) -> None:
        """The call has taken so many bytes."""
        self.connection.consumed(stream, size)

    def forget(self, stream: int) -> None:
        """The call is over."""
        self._rpcs.pop(stream, None)

    # For the server ----------------------------------------------------------------------

    def refuse_more(self) -> None:
        """Tells the client to go elsewhere with new calls."""
        self.connection.goaway()
        self.flush()

    def hang_up(self) -> None:
        """Ends the connection; what was written still goes out."""
        for rpc in list(self._rpcs.values()):
            rpc.cancel()
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._socket is not None:
            self._socket.abort()

    # Events ------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Data):
            rpc = self._rpcs.get(event.stream)
            if rpc is None:
                self.connection.consumed(event.stream, event.size)
            else:
                rpc.receive(event.data, event.size, event.ended)
        elif isinstance(event, Opened):
            self._open(event)
        elif isinstance(event, Writable):
            self._writable(event.stream)
        elif isinstance(event, Reset):
            gone = self._rpcs.pop(event.stream, None)
            if gone is not None:
                gone.cancel()
        else:
            self._ended(event)

    def _open(self, event: Opened) -> None:
        method_name = path = kind = encoding = timeout = ""
        for name, value in event.headers:
            if name == ":path":
                path = value
            elif name == ":method":
                method_name = value
            elif name == "content-type":
                kind = value
            elif name == "grpc-timeout":
                timeout = value
            elif name == "grpc-encoding":
                encoding = value
        if method_name != "POST":
            self.connection.trailers(event.stream, messages.not_grpc(b"405"))
            return
        if not kind.startswith("application/grpc"):
            self.connection.trailers(event.stream, messages.not_grpc(b"415"))
            return
        method = self._methods.get(path)
        if method is None:
            block = messages.only_status(messages.UNIMPLEMENTED, self._unknown(path))
            self.connection.trailers(event.stream, block)
            return
        try:
            wait = messages.seconds(timeout) if timeout else None
        except messages.Malformed as error:
            block = messages.only_status(error.code, str(error))
            self.connection.trailers(event.stream, block)
            return
        rpc = Rpc(self, event.stream, method, event.headers, encoding, wait)
        self._rpcs[event.stream] = rpc
        rpc.start()
        if event.ended:
            rpc.receive(b"", 0, True)

    def _unknown(self, path: str) -> str:
        service, _, method = path.lstrip("/").rpartition("/")
        if any(known.startswith(f"/{service}/") for known in self._methods):
            return f"unknown method {method} for service {service}"
        return f"unknown service {service}"

    def _writable(self, stream: int) -> None:
        if stream:
            rpc = self._rpcs.get(stream)
            if rpc is not None:
                rpc.writable()
            return
        for rpc in list(self._rpcs.values()):
            rpc.writable()

    def _ended(self, event: Ended) -> None:
        log.warning("client violated HTTP/2", extra={"reason": event.reason})
        self.flush()
        self.hang_up()
