"""One connection to the socket of a proxy plugin, made when it is needed and made anew when broken.

It translates at the border: statuses of the peer become domain errors; a peer that cannot be
reached is Unavailable, one that does not answer in time DeadlineExceeded, and both are named.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TypeVar, cast

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing of ours forks with gRPC loaded

import grpc
from google.protobuf.message import Message

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import (
    DeadlineExceeded,
    Error,
    InvalidArgument,
    Unavailable,
    Unimplemented,
    from_code,
)

Answer = TypeVar("Answer", bound=Message)
Headers = Sequence[tuple[str, str]]

_MAX_MESSAGE = 16 << 20
_CONNECT_MS = 5_000
_OURS = "Deadline Exceeded"  # what gRPC says of a deadline that it kept itself
_SCHEME = "unix://"
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Also how long one attempt may take: a peer that accepts and says nothing is not waited for.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
    ("grpc.default_authority", "localhost"),
)


def socket_path(address: str) -> str:
    """The path in an address as containerd takes it: a path, or that behind ``unix://``.

    Raises InvalidArgument."""
    path = address.removeprefix(_SCHEME)
    if not path.startswith("/"):
        raise InvalidArgument(f"address: {address!r} must be the absolute path of a unix socket")
    return path


class Channel:
    """Used from one event loop. Raises InvalidArgument for an address that is no socket's."""

    def __init__(self, address: str) -> None:
        self.path = socket_path(address)
        self._peer = f"proxy plugin at {self.path}"
        self._channel: Any = None
        self._owner = TaskOwner(f"proxy:{self.path}")

    async def unary(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        seconds: float,
        headers: Headers = (),
    ) -> Answer:
        """One call of ``/SERVICE/METHOD`` that may take so many seconds."""
        channel = self._open()
        call = channel.unary_unary(
            method, request_serializer=_serialized, response_deserializer=answer.FromString
        )
        try:
            return cast(Answer, await call(request, timeout=seconds, metadata=_metadata(headers)))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, channel, method, seconds) from error

    async def stream(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        seconds: float,
        headers: Headers = (),
    ) -> AsyncGenerator[Answer, None]:
        """A call that is answered with many messages, all of them within so many seconds."""
        channel = self._open()
        call = channel.unary_stream(
            method, request_serializer=_serialized, response_deserializer=answer.FromString
        )(request, timeout=seconds, metadata=_metadata(headers))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, channel, method, seconds) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Cancels what is under way. A call after it raises Unavailable."""
        channel, self._channel = self._channel, _CLOSED
        await self._owner.close()
        if channel is not None and channel is not _CLOSED:
            await channel.close(None)

    def _open(self) -> Any:
        if self._channel is _CLOSED:
            raise Unavailable(f"{self._peer}: closed")
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self.path}", options=_OPTIONS)
        return self._channel

    def _translated(self, error: Any, channel: Any, method: str, seconds: float) -> Error:
        code, details = error.code(), error.details() or "no reason given"
        verb = method.rpartition("/")[2]
        if code is grpc.StatusCode.UNAVAILABLE:
            self._drop_if_broken(channel)
            return Unavailable(f"{self._peer}: {verb}: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            told = f"no answer within {seconds:g} s" if details == _OURS else details
            return DeadlineExceeded(f"{self._peer}: {verb}: {told}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(f"{self._peer}: {verb}: {details}")
        return from_code(code.value[0], details)

    def _drop_if_broken(self, channel: Any) -> None:
        """So that the next call connects at once, instead of failing until gRPC tries again."""
        broken = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if self._channel is channel and channel.get_state() is broken:
            self._channel = None
            self._owner.spawn(channel.close(None), "close")


class Channels:
    """One channel per socket: plugins with the same address share it."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def get(self, address: str) -> Channel:
        """Raises InvalidArgument."""
        path = socket_path(address)
        if path not in self._channels:
            self._channels[path] = Channel(path)
        return self._channels[path]

    async def close(self) -> None:
        """Closes all."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))


_CLOSED: Any = object()


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _metadata(headers: Headers) -> Any:
    return grpc.aio.Metadata(*headers) if headers else None


def scope_headers(namespace: str, lease: str = "") -> Headers:
    """The namespace and lease of a request, as containerd hands them on."""
    given: Mapping[str, str] = {"containerd-namespace": namespace, "containerd-lease": lease}
    return [(key, value) for key, value in given.items() if value]
