"""The messages of one Content.Read: a range of a blob, cut into chunks.

A message is put together by hand: as a message object its bytes would be copied two times more,
which is half the daemon's work for a chunk.
"""

from __future__ import annotations

from protos.containerd.services.content.v1 import content_pb2 as pb
from supervisord.contracts.content import Reader
from supervisord.contracts.errors import DataLoss, OutOfRange

CHUNK = 1 << 20
"""The most bytes of data in a message: containerd's own, and below the 4 MiB that a client takes
which says nothing else."""

_OFFSET = pb.ReadContentResponse.OFFSET_FIELD_NUMBER << 3
_DATA = pb.ReadContentResponse.DATA_FIELD_NUMBER << 3 | 2


class ReadSession:
    """The range that is still to be sent: ``left`` bytes, after ``done`` ones."""

    def __init__(self, reader: Reader, request: pb.ReadContentRequest) -> None:
        """A negative offset is 0, a size of 0 or less or beyond the end is all the rest.

        Raises OutOfRange."""
        start = max(request.offset, 0)
        if start > reader.size:
            raise OutOfRange(f"offset: read past object length {reader.size} bytes")
        end = reader.size
        if request.size > 0:
            end = min(end, start + request.size)
        self._reader = reader
        self._digest = request.digest
        self._start = start
        self.left = end - start
        self.done = 0

    async def chunk(self) -> bytes:
        """The next message, serialized. Raises DataLoss if the blob has lost its end."""
        size = min(self.left, CHUNK)
        head = message_head(self.done, size)
        message = await self._reader.read(self._start + self.done, size, head)
        if len(message) != len(head) + size:
            raise DataLoss(f"content {self._digest}: the blob on the disk has lost its end")
        self.done += size
        self.left -= size
        return message


def message_head(offset: int, size: int) -> bytes:
    """A serialized ReadContentResponse but for its ``size`` bytes of data, which follow."""
    head = bytearray()
    for tag, value in ((_OFFSET, offset), (_DATA, size)):
        if value:
            head.append(tag)
            while value > 0x7F:
                head.append(value & 0x7F | 0x80)
                value >>= 7
            head.append(value)
    return bytes(head)
