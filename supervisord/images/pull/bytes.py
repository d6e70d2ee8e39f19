"""The bytes of a blob from a registry, however often the connection is cut on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from supervisord.contracts.errors import FailedPrecondition, Unavailable

from ..oci.documents import Descriptor
from ..registry.delays import delay
from ..registry.repository import Body, Repository

_PIECE = 512 << 10
_MOST_CUTS = 5


async def blob_bytes(
    repository: Repository, descriptor: Descriptor, offset: int = 0
) -> AsyncIterator[bytes]:
    """From ``offset`` to the end, in pieces that are worth a thread's time.

    A connection that breaks is made again where it broke; the fifth one in a row that brings
    nothing is the last. Raises Unavailable, FailedPrecondition (more bytes than announced) and
    what opening raises."""
    cuts = 0
    while offset < descriptor.size:
        came = offset
        try:
            async with repository.open(descriptor, offset) as body:
                async for piece in _pieces(body, offset):
                    offset += len(piece)
                    if offset > descriptor.size:
                        raise FailedPrecondition(
                            f"{descriptor.digest}: the registry sends more than the"
                            f" {descriptor.size} bytes that it announced"
                        )
                    yield piece
            if offset < descriptor.size:
                raise Unavailable(
                    f"{descriptor.digest}: the registry sent {offset} of {descriptor.size} bytes"
                )
        except Unavailable:
            cuts = 1 if offset > came else cuts + 1
            if cuts >= _MOST_CUTS:
                raise
            await asyncio.sleep(delay(cuts))


async def _pieces(body: Body, offset: int) -> AsyncIterator[bytes]:
    """Chunks put together; what lies before ``offset`` is dropped. When the connection breaks,
    what came before is handed out first."""
    skip = offset - body.offset
    waiting: list[bytes] = []
    size = 0
    try:
        async for chunk in body.chunks():
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            if skip:
                chunk, skip = chunk[skip:], 0
            waiting.append(chunk)
            size += len(chunk)
            if size >= _PIECE:
                yield b"".join(waiting)
                waiting.clear()
                size = 0
    except Unavailable:
        if waiting:
            yield b"".join(waiting)
        raise
    if waiting:
        yield b"".join(waiting)
