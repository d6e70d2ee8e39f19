"""An archive as it comes, compressed or not: the first bytes say which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import zstandard
from isal import isal_zlib
from isal.igzip_lib import IsalError

from supervisord.contracts.errors import InvalidArgument

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 20


async def plain(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes inside. Raises InvalidArgument for a compressed stream that is damaged."""
    first = b""
    gathered = _gathered(chunks)
    async for chunk in gathered:
        first += chunk
        if len(first) >= len(_ZSTD):
            break
    if first.startswith(_GZIP):
        async for piece in _inflated(first, gathered):
            yield piece
    elif first.startswith(_ZSTD):
        async for piece in _unzstd(first, gathered):
            yield piece
    else:
        if first:
            yield first
        async for piece in gathered:
            yield piece


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Small chunks put together: each step costs a thread's time."""
    waiting: list[bytes] = []
    size = 0
    async for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _PIECE:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)


async def _inflated(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    inflate: Any = isal_zlib.decompressobj(wbits=16 + isal_zlib.MAX_WBITS)
    data = first
    while True:
        while data:
            if inflate.eof:  # another member follows
                if not data.strip(b"\0"):
                    break
                inflate = isal_zlib.decompressobj(wbits=16 + isal_zlib.MAX_WBITS)
            try:
                piece = await asyncio.to_thread(inflate.decompress, data, _PIECE)
            except IsalError as error:  # type: ignore[misc] # the stub has an instance  # type: ignore[misc]  # its stub says it is no class
                raise InvalidArgument(f"archive: damaged gzip: {error}") from error
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if piece:
                yield piece
            elif not inflate.eof:
                break
        try:
            data += await anext(chunks)
        except StopAsyncIteration:
            break
    if not inflate.eof:
        raise InvalidArgument("archive: the gzip stream ends in the middle")


async def _unzstd(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    inflate = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj(
        read_across_frames=True
    )
    data = first
    try:
        while True:
            # Pieces of the input are small, so that what they become is bounded as well.
            for start in range(0, len(data), 64 << 10):
                part = data[start : start + (64 << 10)]
                piece = await asyncio.to_thread(inflate.decompress, part)
                if piece:
                    yield piece
            try:
                data = await anext(chunks)
            except StopAsyncIteration:
                return
    except zstandard.ZstdError as error:
        raise InvalidArgument(f"archive: damaged zstd: {error}") from error
