"""Three threads share one pass over a layer: one inflates, one hashes, the worker's own extracts.

The first two spend their time in code that frees the GIL. The queues between them are bounded, so
whoever is slowest sets the pace and memory stays small.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator

from supervisord.contracts.errors import ResourceExhausted

_DEPTH = 8


class Pipeline:
    """``next_chunk`` gives the uncompressed bytes to the extractor; ``finish`` the digest.

    ``limit`` is the most uncompressed bytes to accept, 0 for no limit. The threads end with the
    process, however far they are."""

    def __init__(self, chunks: Iterator[bytes], limit: int = 0) -> None:
        self._chunks = chunks
        self._limit = limit
        self._to_extract: queue.Queue[bytes | BaseException] = queue.Queue(_DEPTH)
        self._to_hash: queue.Queue[bytes] = queue.Queue(_DEPTH)
        self._hash = hashlib.sha256()
        self._ended = False
        self.size = 0
        self._hasher = threading.Thread(target=self._digest, daemon=True)
        self._hasher.start()
        threading.Thread(target=self._inflate, daemon=True).start()

    def next_chunk(self) -> bytes:
        """The next bytes, b"" at the end. Raises what inflating raised, ResourceExhausted."""
        if self._ended:
            return b""
        chunk = self._to_extract.get()
        if isinstance(chunk, BaseException):
            raise chunk
        if not chunk:
            self._ended = True
        self.size += len(chunk)
        if self._limit and self.size > self._limit:
            raise ResourceExhausted(
                f"layer: it has more than {self._limit} bytes when it is uncompressed"
            )
        return chunk

    def finish(self) -> str:
        """The digest of all, once ``next_chunk`` has answered b""."""
        self._hasher.join()
        return f"sha256:{self._hash.hexdigest()}"

    def _inflate(self) -> None:
        try:
            for chunk in self._chunks:
                self._to_hash.put(chunk)
                self._to_extract.put(chunk)
        except Exception as error:
            self._to_extract.put(error)
            return
        self._to_hash.put(b"")
        self._to_extract.put(b"")

    def _digest(self) -> None:
        while chunk := self._to_hash.get():
            self._hash.update(chunk)
