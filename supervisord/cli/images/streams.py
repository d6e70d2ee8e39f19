"""Streams that the daemon uses during a transfer: what it tells, and what it asks."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message

from ..connection import Connection

Each = Callable[[Packed], Message | None]
"""Takes a message of the daemon's; answers what is sent back, if anything."""

_LAST_SECONDS = 5.0


def packed(message: Message) -> Packed:
    """As containerd's typeurl packs it."""
    return Packed(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@contextmanager
def stream(daemon: Connection, word: str, each: Each, *, is_told: bool = False) -> Iterator[str]:
    """A stream under an id of its own, which is yielded. ``each`` runs in a thread. With
    ``is_told`` the daemon ends it, after what it says last."""
    from protos.containerd.services.streaming.v1.streaming_pb2 import StreamInit
    from protos.containerd.services.streaming.v1.streaming_pb2_grpc import StreamingStub

    id = f"sctl-{word}-{uuid.uuid4()}"
    sent: queue.Queue[Packed | None] = queue.Queue()
    sent.put(packed(StreamInit(id=id)))
    call: Any = StreamingStub(daemon.channel).Stream(iter(sent.get, None))
    next(call)  # from now on it is known by its id

    def receive() -> None:
        try:
            for value in call:
                answer = each(value)
                if answer is not None:
                    sent.put(packed(answer))
        except grpc.RpcError:
            return  # the transfer itself tells what went wrong

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        yield id
    finally:
        sent.put(None)
        if is_told:
            thread.join(_LAST_SECONDS)
        call.cancel()
        thread.join()
