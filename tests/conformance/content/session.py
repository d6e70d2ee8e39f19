"""One Write stream at a time, and the short calls of the content service, over plain stubs."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from protos.containerd.services.content.v1 import content_pb2 as pb

from ..ocitar import sha256
from ..wire import Wire

ROOT = {"containerd.io/gc.root": "test"}


class Session:
    """One open Write stream: a request, its answer, a request, its answer."""

    def __init__(self, wire: Wire) -> None:
        self._requests: queue.Queue[pb.WriteContentRequest | None] = queue.Queue()
        self._stream = wire.content.Write(iter(self._requests.get, None), timeout=20)

    def send(self, action: int, **fields: Any) -> pb.WriteContentResponse:
        """Sends one request; answers the response to it."""
        self._requests.put(pb.WriteContentRequest(action=action, **fields))  # type: ignore[arg-type]
        return next(self._stream)

    def end(self) -> None:
        """Ends the stream and waits until the daemon has ended it too."""
        self._requests.put(None)
        for _ in self._stream:
            pass

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._stream.cancel()


def write(wire: Wire, data: bytes, ref: str = "", **fields: Any) -> str:
    """Writes a blob at once, protected from collection; answers its digest."""
    request = pb.WriteContentRequest(
        action=pb.COMMIT,
        ref=ref or f"ref-{sha256(data)}",
        data=data,
        total=len(data),
        expected=sha256(data),
        labels=ROOT,
        **fields,
    )
    answers = list(wire.content.Write(iter([request])))  # containerd repeats the last one
    assert {answer.digest for answer in answers} == {sha256(data)}
    return sha256(data)


def read(wire: Wire, digest: str, offset: int = 0, size: int = 0) -> bytes:
    """Reads a range."""
    request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
    return b"".join(answer.data for answer in wire.content.Read(request))


def info(wire: Wire, digest: str) -> pb.Info:
    """What is known of a blob."""
    return wire.content.Info(pb.InfoRequest(digest=digest)).info


def status(wire: Wire, ref: str) -> pb.Status:
    """How far an ingest is."""
    return wire.content.Status(pb.StatusRequest(ref=ref)).status


def refs(wire: Wire, *filters: str) -> list[str]:
    """The ingests that match, sorted."""
    request = pb.ListStatusesRequest(filters=filters)
    return sorted(status.ref for status in wire.content.ListStatuses(request).statuses)


def listed(wire: Wire, *filters: str) -> list[str]:
    """The digests that match."""
    stream: Iterator[pb.ListContentResponse] = wire.content.List(
        pb.ListContentRequest(filters=filters)
    )
    return [found.digest for batch in stream for found in batch.info]
