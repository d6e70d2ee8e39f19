"""A stream of bytes in chunks, read piece by piece without copying what need not be copied.

The tar reader and the extractor pull from it; a decompressing thread, a file or a test feeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from supervisord.contracts.errors import DataLoss


class ByteStream:
    """``next_chunk`` answers the next bytes, and b"" at the end and from then on."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._chunk = memoryview(b"")
        self._at = 0
        self.offset = 0
        """How many bytes were consumed."""

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes; fewer only at the end of the stream."""
        end = self._at + count
        if end <= len(self._chunk):
            piece = self._chunk[self._at : end].tobytes()
            self._at = end
            self.offset += count
            return piece
        return b"".join(map(bytes, self.pieces(count, short=True)))

    def pieces(self, count: int, *, short: bool = False) -> Iterator[memoryview]:
        """``count`` bytes as views that hold until the next call. Raises DataLoss when the stream
        ends before, unless it may be ``short``."""
        while count > 0:
            left = len(self._chunk) - self._at
            if left == 0:
                chunk = self._next_chunk()
                if not chunk:
                    if short:
                        return
                    raise DataLoss("layer: the archive ends in the middle of a file")
                self._chunk = memoryview(chunk)
                self._at = 0
                left = len(chunk)
            size = min(left, count)
            start = self._at
            self._at += size
            self.offset += size
            count -= size
            yield self._chunk[start : start + size]

    def skip(self, count: int) -> None:
        """Reads over ``count`` bytes. Raises DataLoss when there are fewer."""
        end = self._at + count
        if end <= len(self._chunk):
            self._at = end
            self.offset += count
            return
        for _ in self.pieces(count):
            pass

    def drain(self) -> None:
        """Reads to the end."""
        while self._next_chunk():
            pass
