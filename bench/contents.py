"""Blobs: large ones written and read, by a client that hurries and by one that waits for each
answer, as containerd's own does; small ones, as manifests are; and the processor time of it."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TypeVar

from bench import figures
from bench.client import META, ROOTED, Client, unique
from bench.figures import Figure
from protos.containerd.services.content.v1 import content_pb2 as content

T = TypeVar("T")
_LARGE = 128
_READS = 3
_SMALL = 2048
_CHUNK = 1 << 20
_CREDENTIALS = struct.Struct("iII")
_MIB = 1 << 20


def blobs(client: Client) -> Iterator[tuple[Figure, float]]:
    """One blob of 128 MiB, one of 64 MiB in steps, and small ones."""
    daemon = _server(client.address)
    data = os.urandom(_LARGE * _MIB)
    seconds, spent, digest = _measured(daemon, lambda: client.write_blob(data))
    yield figures.CONTENT_WRITE, _LARGE / seconds
    yield figures.CONTENT_WRITE_CPU, spent * 1e3 / _LARGE
    reads = [_measured(daemon, lambda: _read(client, digest)) for _ in range(_READS)]
    if {got for _, _, got in reads} != {len(data)}:
        raise ValueError(f"read {reads[0][2]} bytes of {len(data)}")
    yield figures.CONTENT_READ, _LARGE / median(seconds for seconds, _, _ in reads)
    yield figures.CONTENT_READ_CPU, sum(spent for _, spent, _ in reads) * 1e3 / _LARGE / _READS
    client.delete_blob(digest)
    half = os.urandom(_LARGE // 2 * _MIB)
    seconds, _, digest = _measured(daemon, lambda: _write_in_steps(client, half))
    yield figures.CONTENT_STEPS, _LARGE / 2 / seconds
    client.delete_blob(digest)
    yield from _small(client)


def _small(client: Client) -> Iterator[tuple[Figure, float]]:
    made, took = [], []
    for _ in range(20):
        began = time.perf_counter()
        made.append(client.write_blob(os.urandom(_SMALL)))
        took.append(time.perf_counter() - began)
    yield figures.CONTENT_SMALL_WRITE, median(took) * 1e3
    took.clear()
    for digest in made * 10:
        began = time.perf_counter()
        _read(client, digest)
        took.append(time.perf_counter() - began)
    yield figures.CONTENT_SMALL, median(took) * 1e3
    for digest in made:
        client.delete_blob(digest)


def _read(client: Client, digest: str) -> int:
    request = content.ReadContentRequest(digest=digest)
    return sum(len(piece.data) for piece in client.content.Read(request, metadata=META))


def _write_in_steps(client: Client, data: bytes) -> str:
    """Sends a message only when the one before was answered."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    requests: queue.Queue[content.WriteContentRequest | None] = queue.Queue()
    answers = client.content.Write(iter(requests.get, None), metadata=META, timeout=300)
    ref = unique("ref-")
    for start in range(0, len(data), _CHUNK):
        piece = data[start : start + _CHUNK]
        requests.put(
            content.WriteContentRequest(
                action=content.WRITE, ref=ref, total=len(data), offset=start, data=piece
            )
        )
        next(answers)
    requests.put(
        content.WriteContentRequest(
            action=content.COMMIT,
            ref=ref,
            total=len(data),
            offset=len(data),
            expected=digest,
            labels=ROOTED,
        )
    )
    next(answers)
    requests.put(None)
    for _ in answers:
        pass
    return digest


def _measured(pid: int, action: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds that it took, seconds of the daemon's processor time, and what it answered."""
    spent, began = _processor(pid), time.perf_counter()
    answer = action()
    return time.perf_counter() - began, _processor(pid) - spent, answer


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _server(address: str) -> int:
    """The process that listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[0])
