"""Follows the frames of a zstd stream (RFC 8878, section 3), to know whether it is whole.

libzstd's streaming reader ends quietly when its input is cut off in the middle of a frame. This
one reads along and knows. It decodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from supervisord.contracts.errors import DataLoss

_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY = (0, 1, 2, 4)
_CONTENT_SIZE = (0, 2, 4, 8)


class ZstdFrames:
    """A file-like reader around ``read``; ``complete`` says whether what was read ends a frame."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.complete = True
        self._steps = self._follow()
        self._needed = next(self._steps)
        self._held = b""
        self._skip = 0

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self._feed(data)
        return data

    def _feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            wanted = self._needed - len(self._held)
            self._held += data[at : at + wanted]
            at += wanted
            if len(self._held) == self._needed:
                held, self._held = self._held, b""
                self._needed = self._steps.send(held)
        if data:
            self.complete = self.at_frame_end and not self._held and not self._skip

    at_frame_end = True

    def _follow(self) -> Generator[int, bytes, None]:
        """Asks for the sizes of the headers, one after the other, and is sent them."""
        while True:
            self.at_frame_end = True
            magic = yield 4
            self.at_frame_end = False
            if magic[0] & 0xF0 == 0x50 and magic[1:] == b"\x2a\x4d\x18":
                size = yield 4
                self._skip = int.from_bytes(size, "little")
                continue
            if magic != _MAGIC:
                raise DataLoss("layer: there is data behind the end of the zstd stream")
            descriptor = (yield 1)[0]
            single = bool(descriptor & 0x20)
            content = _CONTENT_SIZE[descriptor >> 6] or int(single)
            yield from self._header(_DICTIONARY[descriptor & 3] + content + (not single))
            last = False
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = bool(block & 1)
                kind, size_of_block = (block >> 1) & 3, block >> 3
                self._skip = 1 if kind == 1 else size_of_block
            if descriptor & 4:
                yield 4

    def _header(self, size: int) -> Generator[int, bytes, None]:
        if size:
            yield size
