"""Bodies that a server or a proxy packed for the way, although they were asked for as they are.

Some storages keep blobs so; a digest is of what was packed (RFC 9110, section 8.4.1).
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from supervisord.contracts.errors import DataLoss

_MOST = 1 << 20
"""Bytes that come of one step: a few packed ones may be very many."""


class _Decoder(Protocol):
    def step(self, data: bytes) -> tuple[bytes, bytes]:
        """What came of it, and what is left to be given again."""
        ...

    @property
    def complete(self) -> bool: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        return self._zlib.decompress(data, _MOST), self._zlib.unconsumed_tail

    @property
    def complete(self) -> bool:
        return self._zlib.eof


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._zstd: Any = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        return self._zstd.decompress(data[:_PART]), data[_PART:]

    @property
    def complete(self) -> bool:
        return bool(self._zstd.eof)


_PART = 16 << 10


def known(encoding: str) -> bool:
    """Whether it can be undone."""
    return encoding in ("gzip", "x-gzip", "deflate", "zstd")


async def decoded(encoding: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What was packed. Raises DataLoss where it is damaged or ends early."""
    decoder = _decoder(encoding)
    try:
        async for chunk in chunks:
            left = chunk
            while left and not decoder.complete:
                data, left = decoder.step(left)
                if data:
                    yield data
    except zlib.error as error:
        raise DataLoss(f"its content encoding {encoding} is damaged: {error}") from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # its module is imported only for such a body
            raise DataLoss(f"its content encoding {encoding} is damaged: {error}") from error
        raise
    if not decoder.complete:
        raise DataLoss(f"its content encoding {encoding} ends early")


def _decoder(encoding: str) -> _Decoder:
    if encoding == "zstd":
        return _Zstd()
    return _Zlib(31 if "gzip" in encoding else 15)
