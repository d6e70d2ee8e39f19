"""ttrpc on the shim's own loop: the task service it serves, and the calls it makes.

Unary calls only; frames come from ``supervisord.ttrpc.frames``. A handler runs to its end even
when the caller's connection is lost, so that nothing is left half-made; only methods listed as
``abandonable`` (waits) end with their connection or deadline.
"""

from __future__ import annotations

import os
import select
import struct
import time
from _socket import AF_UNIX, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from protos.ttrpc import ttrpc_pb2
from supervisord.contracts.errors import (
    DataLoss,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    Unavailable,
    Unimplemented,
    from_code,
)
from supervisord.ttrpc.frames import (
    MAX_DATA,
    REQUEST,
    RESPONSE,
    Frame,
    FrameReader,
    encode,
    too_large,
)

from . import log
from .loop import READ, WRITE, Future, Loop, Task

R = TypeVar("R", bound=Message)
Handler = Callable[[Any, Any], Coroutine[Any, Any, Message]]
Method = tuple[Handler, type[Message]]
Methods = dict[tuple[str, str], Method]
Late = Callable[[str, str], Method | None]

_CREDENTIALS = struct.Struct("iII")

_FLUSH_SECONDS = 2.0
_MAX_BACKLOG = 64 << 20
"""Bytes of answers that a peer may leave unread before it is hung up on."""


def bind(descriptor: ServiceDescriptor, implementation: type) -> Methods:
    """The methods of a service by (service, method): the functions of the class that implements
    it, and their request classes. Made once, before any fork."""
    return {
        (descriptor.full_name, method.name): (
            getattr(implementation, method.name),
            GetMessageClass(method.input_type),
        )
        for method in descriptor.methods
    }


class Wire:
    """A connected socket that carries frames; the base of both ends."""

    def __init__(self, loop: Loop, fd: int) -> None:
        """Takes the descriptor over."""
        self.loop = loop
        self._fd = fd
        self._reader = FrameReader()
        self._unsent = bytearray()
        self.is_open = True
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._ready)

    def received(self, frame: Frame) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        raise NotImplementedError

    def send(self, frame: bytes) -> None:
        """Sends or queues; dropped when the connection has ended."""
        if not self.is_open:
            return
        if not self._unsent:
            try:
                sent = os.write(self._fd, frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(frame):
                return
            frame = frame[sent:]
            self.loop.watch(self._fd, READ | WRITE, self._ready)
        self._unsent += frame
        if len(self._unsent) > _MAX_BACKLOG:
            log.warning("peer does not read its answers, hanging up")
            self.close()

    @property
    def is_sent(self) -> bool:
        """Whether all is with the kernel."""
        return self.is_open and not self._unsent

    def close(self) -> None:
        """Ends the connection; what is unsent is lost."""
        if self.is_open:
            self.is_open = False
            self.loop.unwatch(self._fd)
            os.close(self._fd)
            self.lost()

    def flush(self) -> None:
        """Sends what is queued and waits a moment for a peer who takes it; for the last words of a
        shim."""
        end = time.monotonic() + _FLUSH_SECONDS
        writable = select.poll()
        writable.register(self._fd, select.POLLOUT)
        while self.is_open and self._unsent and (left := end - time.monotonic()) > 0:
            if writable.poll(left * 1000):
                self._write()

    def _ready(self, events: int) -> None:
        if events & WRITE and self._unsent:
            self._write()
        if self.is_open and events & ~WRITE:
            self._read()

    def _write(self) -> None:
        try:
            del self._unsent[: os.write(self._fd, self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self.loop.watch(self._fd, READ, self._ready)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 16 << 10)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for frame in self._reader.feed(data):
            self.received(frame)


class Server:
    """Serves methods on a listening socket, to peers of the same user (or root)."""

    def __init__(
        self,
        loop: Loop,
        listener: int,
        methods: Methods,
        implementation: object,
        *,
        abandonable: Sequence[str] = (),
        on_connect: Callable[[], None] = lambda: None,
        late: Late = lambda service, method: None,
    ) -> None:
        """``late`` finds methods that are not in ``methods``."""
        self.loop = loop
        self.methods = methods
        self.implementation = implementation
        self.abandonable = frozenset(abandonable)
        self.late = late
        self.peers: set[_Peer] = set()
        self._listener = socket(fileno=listener)
        self._on_connect = on_connect
        self.on_lonely: Callable[[], None] = lambda: None
        """Called when the last caller has gone."""
        self._listener.setblocking(False)
        loop.watch(listener, READ, self._accept)

    def close(self) -> None:
        """Accepts nobody any more and ends all connections."""
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for peer in list(self.peers):
            peer.flush()
            peer.close()

    def _accept(self, _: int) -> None:
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            log.debug("accept failed", error=error)
            return
        sock = socket(fileno=fd)
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
        sock.detach()
        if uid not in (0, os.geteuid()):
            log.warning("refused a connection", uid=uid)
            os.close(fd)
            return
        self.peers.add(_Peer(self, fd))
        self._on_connect()


class _Peer(Wire):
    """One caller."""

    def __init__(self, server: Server, fd: int) -> None:
        super().__init__(server.loop, fd)
        self._server = server
        self._waiting: set[Task[None]] = set()
        self._last_stream = 0

    def lost(self) -> None:
        peers = self._server.peers
        peers.discard(self)
        if not peers:
            self._server.on_lonely()
        for task in self._waiting:
            task.drop()
        self._waiting.clear()

    def received(self, frame: Frame) -> None:
        if frame.type != REQUEST:
            return
        try:
            if frame.oversized:
                raise too_large(frame.oversized)
            if frame.stream_id % 2 != 1 or frame.stream_id <= self._last_stream:
                raise InvalidArgument("StreamID must be odd, and must increment")
            self._last_stream = frame.stream_id
            self._request(frame)
        except Error as error:
            self._answer(frame.stream_id, error=error)

    def _request(self, frame: Frame) -> None:
        try:
            request = ttrpc_pb2.Request.FromString(frame.data)
            server, name = self._server, (request.service, request.method)
            found = server.methods.get(name) or server.late(*name)
            if found is None:
                raise Unimplemented(f"service {request.service}: method {request.method}")
            handler, kind = found
            argument = kind.FromString(request.payload)
        except DecodeError as error:
            raise InvalidArgument(f"unmarshal request error: {error}") from error
        task = self.loop.spawn(self._run(frame.stream_id, handler, argument), request.method)
        if request.method in self._server.abandonable:
            self._waiting.add(task)
            task.when_done(lambda: self._waiting.discard(task))
            if request.timeout_nano > 0:
                self._give_up_after(request.timeout_nano / 1e9, frame.stream_id, task)

    def _give_up_after(self, seconds: float, stream_id: int, task: Task[None]) -> None:
        def give_up() -> None:
            if not task.done:
                task.drop()
                self._waiting.discard(task)
                self._answer(stream_id, error=DeadlineExceeded("context deadline exceeded"))

        timer = self.loop.later(seconds, give_up)
        task.when_done(timer.cancel)

    async def _run(self, stream_id: int, handler: Handler, argument: Message) -> None:
        try:
            response = await handler(self._server.implementation, argument)
            self._answer(stream_id, response.SerializeToString())
        except Error as error:
            self._answer(stream_id, error=error)
        except Exception as error:
            log.error("a handler failed", handler=handler.__name__, error=repr(error))
            self._answer(stream_id, error=Internal(f"{type(error).__name__}: {error}"))

    def _answer(self, stream_id: int, payload: bytes = b"", error: Error | None = None) -> None:
        response = ttrpc_pb2.Response(payload=payload)
        if error is not None:
            response.status.code = error.code
            response.status.message = error.message
        data = response.SerializeToString()
        if len(data) > MAX_DATA:
            self._answer(stream_id, error=too_large(len(data)))
        else:
            self.send(encode(stream_id, RESPONSE, 0, data))


class Client(Wire):
    """Makes calls to a ttrpc server. It never reconnects; see ``publisher``."""

    def __init__(self, loop: Loop, path: str) -> None:
        """Connects. Raises Unavailable when nobody listens."""
        sock = socket(AF_UNIX, SOCK_STREAM)
        sock.setblocking(False)
        try:
            # A full backlog answers EAGAIN at once: a unix socket is never connected "later".
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            sock.close()
            raise Unavailable(f"connecting to {path}: {error}") from error
        super().__init__(loop, sock.detach())
        self._next = 1
        self._calls: dict[int, Future[bytes]] = {}

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        kind: type[R],
        *,
        seconds: float,
        metadata: Mapping[str, str],
    ) -> R:
        """One call. Raises the peer's error, DeadlineExceeded, Unavailable, DataLoss."""
        if not self.is_open:
            raise Unavailable("connection is closed")
        message = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=request.SerializeToString(),
            timeout_nano=int(seconds * 1e9),
        )
        for key, value in metadata.items():
            message.metadata.add(key=key, value=value)
        stream_id, self._next = self._next, self._next + 2
        answer: Future[bytes] = Future(self.loop)
        self._calls[stream_id] = answer
        self.send(encode(stream_id, REQUEST, 0, message.SerializeToString()))
        try:
            raw = await self.loop.within(seconds, answer, f"{service}/{method}")
            response = ttrpc_pb2.Response.FromString(raw)
            if response.status.code:
                raise from_code(response.status.code, response.status.message)
            return kind.FromString(response.payload)
        except DecodeError as error:
            raise DataLoss(f"{service}/{method}: malformed answer: {error}") from error
        finally:
            self._calls.pop(stream_id, None)

    def received(self, frame: Frame) -> None:
        call = self._calls.get(frame.stream_id)
        if call is not None and frame.type == RESPONSE:
            call.set(frame.data)

    def lost(self) -> None:
        for call in self._calls.values():
            call.fail(Unavailable("connection is closed"))
