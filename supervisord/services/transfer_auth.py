"""Credentials that a client keeps: asked for over a stream of its own, when a server wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from protos.containerd.types.transfer import transfer_pb2 as types
from supervisord.contracts.errors import InvalidArgument, Unauthenticated
from supervisord.contracts.streams import Stream
from supervisord.contracts.typed import pack
from supervisord.credentials.secret import Secret

_SECONDS = 60.0


class StreamKeeper:
    """Implements Keeper. One question at a time is on the stream."""

    def __init__(self, stream: Stream, reference: str) -> None:
        self._stream = stream
        self._reference = reference
        self._lock = asyncio.Lock()

    async def secret(self, host: str, challenges: Sequence[str] = ()) -> Secret:
        """Raises Unauthenticated where the client does not answer, InvalidArgument."""
        question = types.AuthRequest(
            host=host, reference=self._reference, wwwauthenticate=challenges
        )
        async with self._lock:
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._stream.send(pack(question))
                    value = await self._stream.receive()
            except TimeoutError as error:
                raise Unauthenticated(
                    f"{host}: the client did not answer for credentials in {_SECONDS:g} s"
                ) from error
        if value is None:
            raise Unauthenticated(f"{host}: the client has closed its stream of credentials")
        if value.type_url.rpartition("/")[2] != types.AuthResponse.DESCRIPTOR.full_name:
            raise InvalidArgument(f"auth_stream: {value.type_url!r} is no AuthResponse")
        try:
            answer = types.AuthResponse.FromString(value.value)
        except DecodeError as error:
            raise InvalidArgument(f"auth_stream: malformed AuthResponse: {error}") from error
        match answer.authType:
            case types.CREDENTIALS:
                return Secret(answer.username, answer.secret)
            case types.REFRESH:
                return Secret("", answer.secret)
            case types.HEADER:
                return Secret(header=answer.secret)
        return Secret()
