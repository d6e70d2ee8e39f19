"""Where a computed layer goes: compressed to a descriptor and hashed, each in a thread of its own.

The archive's writer fills chunks; the two threads spend their time in code that frees the GIL. The
queues are bounded, so a slow reader at the other end of the pipe slows the walk down.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from typing import Protocol

import zstandard
from isal import isal_zlib

from supervisord.contracts.errors import InvalidArgument

_CHUNK = 512 << 10
_DEPTH = 8
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: str) -> _Compressor:
    if compression == "gzip":
        gzip: _Compressor = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
        return gzip
    if compression == "zstd":
        zstd: _Compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        return zstd
    if compression == "none":
        return _Plain()
    raise InvalidArgument(f"compression: {compression!r} is not one of gzip, zstd, none")


class Outflow:
    """``write`` takes the uncompressed bytes; ``finish`` ends the stream on ``fd``."""

    def __init__(self, fd: int, compression: str) -> None:
        self._fd = fd
        self._compressor = _compressor(compression)
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self._failure: BaseException | None = None
        self._to_hash: queue.Queue[bytes] = queue.Queue(_DEPTH)
        self._to_pipe: queue.Queue[bytes] = queue.Queue(_DEPTH)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._digest, self._send)
        ]
        for thread in self._threads:
            thread.start()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises what went wrong at the other end (BrokenPipeError)."""
        self.size += len(data)
        self._pending += data
        if len(self._pending) >= _CHUNK:
            self._pass_on()

    def finish(self) -> str:
        """Sends the rest; answers the digest of the uncompressed bytes. Raises as ``write``."""
        if self._pending:
            self._pass_on()
        self._to_hash.put(b"")
        self._to_pipe.put(b"")
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return f"sha256:{self._hash.hexdigest()}"

    def _pass_on(self) -> None:
        if self._failure is not None:
            raise self._failure
        chunk = bytes(self._pending)
        self._pending.clear()
        self._to_hash.put(chunk)
        self._to_pipe.put(chunk)

    def _digest(self) -> None:
        while chunk := self._to_hash.get():
            self._hash.update(chunk)

    def _send(self) -> None:
        while chunk := self._to_pipe.get():
            if self._failure is None:
                self._attempt(chunk)
        if self._failure is None:
            self._attempt(b"")

    def _attempt(self, chunk: bytes) -> None:
        try:
            compressor = self._compressor
            data = memoryview(compressor.compress(chunk) if chunk else compressor.flush())
            while data:
                data = data[os.write(self._fd, data) :]
        except Exception as error:
            self._failure = error
