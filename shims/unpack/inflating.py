"""A blob written into an open file, uncompressed: what a layer needs that is a file system already.

Not compressed at all, it is copied by the kernel, which shares the data where the disk can."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import cast

from supervisord.contracts.errors import Cancelled, DataLoss

from .inflate import Source, chunks
from .pipeline import Pipeline

_PIECE = 32 << 20


def inflate(
    arguments: Mapping[str, object], blob: int, target: int, results: int
) -> Mapping[str, object]:
    """Answers digest ("" for a copy) and size of what was written, which is on the disk then.

    Raises DataLoss, ResourceExhausted, Cancelled, OSError."""
    poll = select.poll()
    poll.register(results, 0)

    def check() -> None:
        if poll.poll(0):
            raise Cancelled("layer: nobody waits for the result")

    compression = str(arguments.get("compression", "auto"))
    if compression == "none":
        size, at = os.fstat(blob).st_size, 0
        while at < size:
            check()
            at += _copied(blob, target, at, min(size - at, _PIECE))
        os.fsync(target)
        return {"digest": "", "size": size}
    limit = cast("int", arguments.get("limit", 0))
    pipeline = Pipeline(chunks(Source(blob), compression), limit)
    while chunk := pipeline.next_chunk():
        check()
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
    os.fsync(target)
    return {"digest": pipeline.finish(), "size": pipeline.size}


def _copied(blob: int, target: int, at: int, size: int) -> int:
    try:
        count = os.copy_file_range(blob, target, size, at, at)
    except OSError:  # not between these two file systems
        count = os.pwrite(target, os.pread(blob, 1 << 20, at), at)
    if not count:
        raise DataLoss("layer: the blob is cut off")
    return count
