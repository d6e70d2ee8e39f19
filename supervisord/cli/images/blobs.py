"""Blobs over the wire: reading, writing in a stream, labelling.

The daemon can resume an ingest by its ref, but sctl always starts over: what it sends comes from a
stream that it cannot seek. Callers hold a lease, or garbage collection may be quicker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from protos.containerd.services.content.v1 import content_pb2 as wire

from ..connection import Connection
from ..errors import CliError, is_code

CHUNK = 1 << 20
JSON_LIMIT = 8 << 20
# Chunks that may be on their way before one is acknowledged.
_WINDOW = 4

Progress = Callable[[int], None]


def exists(daemon: Connection, digest: str) -> bool:
    """Whether the namespace has the blob."""
    if digest in daemon.blobs:
        return True
    try:
        daemon.content.Info(wire.InfoRequest(digest=digest))
    except grpc.RpcError as error:
        if is_code(error, "NOT_FOUND"):
            return False
        raise
    return True


def chunks(daemon: Connection, digest: str, offset: int = 0, size: int = 0) -> Iterator[bytes]:
    """The bytes of a blob as they arrive."""
    request = wire.ReadContentRequest(digest=digest, offset=offset, size=size)
    for answer in daemon.content.Read(request):
        yield answer.data


def read(daemon: Connection, digest: str, limit: int = JSON_LIMIT) -> bytes:
    """A whole small blob. Raises CliError when it is larger than ``limit``."""
    data = bytearray()
    for chunk in chunks(daemon, digest):
        data += chunk
        if len(data) > limit:
            raise CliError(f"blob {digest} is larger than {limit >> 20} MiB, too large for JSON")
    return bytes(data)


def read_json(daemon: Connection, digest: str) -> dict[str, Any]:
    """A JSON object, not to be changed. Raises CliError when the blob is something else."""
    value = daemon.blobs.get(digest)
    if value is None:
        value = daemon.blobs[digest] = parse_json(read(daemon, digest), f"blob {digest}")
    return value


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from untrusted bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CliError(f"{where} is not a JSON object")
    return value


def upload(
    daemon: Connection,
    source: BinaryIO,
    size: int,
    *,
    expected: str = "",
    ref: str = "",
    labels: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Streams ``size`` bytes into the store (-1: until EOF) and answers their digest.

    A blob that is there already is not sent: the source is left where it is, for the caller to
    skip. Raises CliError when the source ends early; a mismatch is the daemon's RPC error."""
    ref = ref or f"sctl-{time.time_ns()}-{os.urandom(4).hex()}"
    total = max(size, 0)
    message = partial(wire.WriteContentRequest, ref=ref, expected=expected)
    requests: queue.SimpleQueue[wire.WriteContentRequest | None] = queue.SimpleQueue()
    call = daemon.content.Write(iter(requests.get, None))
    hasher = hashlib.sha256()
    try:
        requests.put(message(action=wire.STAT, total=total))
        next(call)
        sent = pending = 0
        for piece in _pieces(source, size):
            # An offset of 0 makes the daemon drop what an earlier attempt left under this ref.
            requests.put(message(action=wire.WRITE, total=total, offset=sent, data=piece))
            sent += len(piece)
            if not expected:
                hasher.update(piece)
            if progress is not None:
                progress(len(piece))
            pending += 1
            if pending == _WINDOW:
                next(call)
                pending -= 1
        requests.put(message(action=wire.COMMIT, total=sent, offset=sent, labels=labels or {}))
        for _ in range(pending + 1):
            answer = next(call)
        return answer.digest
    except grpc.RpcError as error:
        if is_code(error, "ALREADY_EXISTS"):
            return expected or "sha256:" + hasher.hexdigest()
        _abort(daemon, ref)
        raise
    except BaseException:
        call.cancel()
        _abort(daemon, ref)
        raise
    finally:
        requests.put(None)


def upload_bytes(daemon: Connection, data: bytes, labels: Mapping[str, str] | None = None) -> str:
    """Stores a small blob under its sha256 and answers that."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return upload(daemon, io.BytesIO(data), len(data), expected=digest, labels=labels)


def label(daemon: Connection, digest: str, labels: Mapping[str, str]) -> None:
    """Sets some labels of a blob and leaves its others."""
    daemon.content.Update(
        wire.UpdateRequest(
            info=wire.Info(digest=digest, labels=labels),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
    )


def _pieces(source: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = source.read(CHUNK if left < 0 else min(CHUNK, left))
        if not piece:
            if left > 0:
                raise CliError(f"the input ended {left} bytes early")
            return
        if left > 0:
            left -= len(piece)
        yield piece


def _abort(daemon: Connection, ref: str) -> None:
    """Drops a failed ingest; if even that fails, its lease's end lets it be collected."""
    with suppress(grpc.RpcError):
        daemon.content.Abort(wire.AbortRequest(ref=ref))
