"""An archive given to the daemon as it is, which reads, names and unpacks it: the Transfer service.

What ``importing`` does for a daemon without one. The bytes go over a stream within the windows that
the daemon opens.
"""

from __future__ import annotations

import os
import queue
import stat
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO

import grpc

from protos.containerd.types.transfer import transfer_pb2 as types
from protos.containerd.types.types_pb2 import Platform as WirePlatform

from ..connection import Connection
from ..errors import is_code
from . import media
from .importing import Options
from .registries import transfer, wire_platform
from .streams import packed
from .ticker import Ticker

_PIECE = 256 << 10

Saved = list[tuple[str, str]]


def offered(daemon: Connection) -> bool:
    """Whether the daemon has the services for it."""
    from protos.containerd.services.introspection.v1.introspection_pb2 import PluginsRequest

    try:
        request = PluginsRequest(filters=["type==io.containerd.transfer.v1"])
        plugins = daemon.introspection.Plugins(request).plugins
    except grpc.RpcError as error:
        if is_code(error, "UNIMPLEMENTED"):
            return False
        raise
    return any(not plugin.HasField("init_err") for plugin in plugins)


def carry(daemon: Connection, source: BinaryIO, options: Options, snapshotter: str) -> Saved:
    """Imports an archive, and unpacks it into ``snapshotter`` ("": not at all). Answers the names
    that were made, with digests."""
    platforms = [wire_platform(one) for one in options.platforms or ()]
    base = options.base_name or f"import-{datetime.now(UTC):%Y-%m-%d}"
    rule = types.ImageReference(
        name=base,
        is_prefix=True,
        allow_overwrite=not options.base_name,
        add_digest=options.digests,
        skip_named_digest=options.skip_digest_for_named,
    )
    store = types.ImageStore(
        name=options.index_name,
        platforms=platforms,
        extra_references=[rule],
        unpacks=_unpacks(platforms, snapshotter),
    )
    saved: Saved = []

    def told(progress: types.Progress) -> None:
        if progress.event == "saved":
            saved.append((progress.name, progress.desc.digest))

    # Off a terminal an import says what it has named, and nothing on its way.
    with Ticker(quiet=not sys.stderr.isatty()) as ticker:
        size = _size(source)

        def read(count: int) -> None:
            ticker.counted("archive", "read" if count == size else "reading", count, size)

        with _sending(daemon, source, read) as id:
            transfer(daemon, types.ImageImportStream(stream=id), store, ticker, told)
    return saved


def _unpacks(
    platforms: Sequence[WirePlatform], snapshotter: str
) -> Sequence[types.UnpackConfiguration]:
    if not snapshotter:
        return []
    return [
        types.UnpackConfiguration(platform=platform, snapshotter=snapshotter)
        for platform in platforms or [wire_platform(media.here())]
    ]


def _size(source: BinaryIO) -> int:
    """Of a file; 0 for a pipe, whose end nobody knows."""
    found = os.fstat(source.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


@contextmanager
def _sending(daemon: Connection, source: BinaryIO, read: Callable[[int], None]) -> Iterator[str]:
    """A stream that gives the source's bytes; its id is yielded."""
    from protos.containerd.services.streaming.v1.streaming_pb2 import StreamInit
    from protos.containerd.services.streaming.v1.streaming_pb2_grpc import StreamingStub

    id = f"sctl-import-{uuid.uuid4()}"
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sent.put(packed(StreamInit(id=id)))
    call: Any = StreamingStub(daemon.channel).Stream(iter(sent.get, None))
    next(call)  # from now on it is known by its id
    failures: list[OSError] = []

    def send() -> None:
        window = count = 0
        try:
            for value in call:
                window += types.WindowUpdate.FromString(value.value).update
                while window > 0:
                    data = source.read(min(window, _PIECE))
                    if not data:
                        sent.put(None)
                        return
                    sent.put(packed(types.Data(data=data)))
                    window -= len(data)
                    count += len(data)
                    read(count)
        except grpc.RpcError:
            return  # the transfer itself tells what went wrong
        except OSError as error:
            failures.append(error)
            call.cancel()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield id
    except grpc.RpcError:
        if failures:
            raise failures[0] from None
        raise
    finally:
        sent.put(None)
        call.cancel()
        thread.join(1.0)  # one that waits for a pipe is left to the end of the process
