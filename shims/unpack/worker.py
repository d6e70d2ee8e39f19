"""The unpack worker: applies one layer to one set of mounts, says how it went, and ends.

It runs in a fork of the zygote. Descriptors: the blob (a file, or the read end of a pipe; for a
diff the write end of one), the payloads of stream processors that have one, and the write end of
the result pipe. Arguments::

    operation     "apply" (the default), "diff" (see diffing), or "inflate" (see inflating; its
                  second descriptor is the file to write)
    compression   "none", or "auto": decided by the first bytes
    processors    programs that the blob goes through first:
                  [{"media_type", "path", "args", "env", "payload"}]
    mounts        [{"type", "source", "options", "target"}, ...]
    mountpoint    an empty directory for what has to be mounted
    limit         the most uncompressed bytes, 0 for no limit
    entries       the most entries, 0 for no limit
    sync          whether to flush the target's file system at the end

The result is one JSON line, ``{"digest", "size", "entries"}`` or ``{"error": {"code",
"message"}}``; a pipe that closes without one means that the worker crashed. When the reader of the
results is gone the work is given up.
"""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Mapping, Sequence
from typing import Any, cast

from supervisord.contracts.errors import (
    Cancelled,
    Error,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unknown,
)
from supervisord.linux.heap import keep_freed
from supervisord.linux.openat import syncfs

from .diffing import diff
from .extract import Extractor
from .inflate import Source, chunks
from .inflating import inflate
from .paths import Folders
from .pipeline import Pipeline
from .processors import Processors
from .stream import ByteStream
from .tar import TarReader
from .target import enter, in_user_namespace, open_target, parse_mounts
from .whiteout import Deletions, OverlayMarks, Whiteouts

_KEPT = 64 << 20  # more than all chunks that are under way
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Mapping[str, object], fds: Sequence[int]) -> None:
    """Does the work and writes the result; returns in any case."""
    *inputs, results = fds
    try:
        result = _run(arguments, inputs, results)
    except Error as error:
        result = {"error": {"code": error.code, "message": error.message}}
    except OSError as error:
        failure = _translated(error)
        result = {"error": {"code": failure.code, "message": failure.message}}
    except Exception as error:
        message = f"unpack worker: {type(error).__name__}: {error}"
        result = {"error": {"code": Internal.code, "message": message}}
    _answer(results, json.dumps(result).encode() + b"\n")


def _run(
    arguments: Mapping[str, object], inputs: Sequence[int], results: int
) -> Mapping[str, object]:
    operation = arguments.get("operation", "apply")
    if operation == "apply":
        return apply(arguments, inputs, results)
    if operation == "diff":
        return diff(arguments, inputs[0])
    if operation == "inflate":
        return inflate(arguments, inputs[0], inputs[1], results)
    raise InvalidArgument(f"operation: {operation!r} is unknown")


def apply(
    arguments: Mapping[str, object], inputs: Sequence[int], results: int
) -> Mapping[str, object]:
    """Extracts the layer; answers digest and size of the uncompressed tar."""
    keep_freed(_KEPT)
    blob, *payloads = inputs
    descriptions = cast("Sequence[Mapping[str, Any]]", arguments.get("processors", []))
    processors = Processors(descriptions, payloads)
    source = Source(processors.start(blob, results))
    try:
        found = _extract(arguments, source, results)
        processors.finish()
    except Error as error:
        raise processors.explain(error, ended=source.ended) from None
    return found


def _extract(arguments: Mapping[str, object], source: Source, results: int) -> Mapping[str, object]:
    target = open_target(
        parse_mounts(arguments.get("mounts")), str(arguments.get("mountpoint", ""))
    )
    limit, most = (cast("int", arguments.get(key, 0)) for key in ("limit", "entries"))
    uncompressed = chunks(source, str(arguments.get("compression", "auto")))
    pipeline = Pipeline(uncompressed, limit)
    devices = not in_user_namespace()
    enter(target)
    poll = select.poll()
    poll.register(results, 0)

    def next_chunk() -> bytes:
        chunk = pipeline.next_chunk()
        if poll.poll(0):
            raise Cancelled("layer: nobody waits for the result")
        return chunk

    brought: set[bytes] = set()
    whiteouts: Whiteouts
    if target.marks:
        whiteouts = OverlayMarks(brought, target.marks)
        folders = Folders(target.lowers, reborn=whiteouts.opaque)
    else:
        whiteouts = Deletions(brought)
        folders = Folders()
    stream = ByteStream(next_chunk)
    reader = TarReader(stream)
    entries = Extractor(reader, folders, whiteouts, brought, most, devices=devices).run()
    if target.marks and not target.lowers:
        folders.mark_implied(target.marks)
    stream.drain()
    if arguments.get("sync"):
        syncfs(target.root)
    return {"digest": pipeline.finish(), "size": pipeline.size, "entries": entries}


def _translated(error: OSError) -> Error:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    text = f"layer: {name}: {error.strerror}" if name else f"layer: {error.strerror or error}"
    return ResourceExhausted(text) if error.errno in _FULL else Unknown(text)


def _answer(results: int, line: bytes) -> None:
    try:
        while line:
            line = line[os.write(results, line) :]
    except OSError as error:
        if error.errno != errno.EPIPE:  # nobody waits any more
            raise
