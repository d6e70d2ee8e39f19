"""Calls that survive a restart of the daemon.

Containers outlive their daemon, so an attached ``sctl`` does too: what it was about to say is said
again once the daemon is back. A call whose answer was lost may have had its effect, so only calls
whose repetition is harmless, or whose second refusal tells that the first one worked, go through
here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc

from protos.containerd.services.tasks.v1 import tasks_pb2 as wire
from protos.containerd.v1.types.task_pb2 import Status

from .errors import is_code

if TYPE_CHECKING:
    from .connection import Connection

T = TypeVar("T")

# How long to wait for a daemon that went away, and how often to look.
PATIENCE = 60.0
PAUSE = 0.2


def repeat(call: Callable[[], T]) -> T:
    """Calls again, for up to a minute, while the daemon is away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if not is_code(error, "UNAVAILABLE") or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def delete(call: Callable[[], T]) -> None:
    """A removal: what is not there has been removed."""
    try:
        repeat(call)
    except grpc.RpcError as error:
        if not is_code(error, "NOT_FOUND"):
            raise


def start(daemon: Connection, id: str, exec_id: str = "") -> None:
    """Starts a created process once, whatever becomes of the answer."""
    lost = False

    def attempt() -> None:
        nonlocal lost
        if lost:
            request = wire.GetRequest(container_id=id, exec_id=exec_id)
            if daemon.tasks.Get(request).process.status != Status.CREATED:
                return
        lost = True
        daemon.tasks.Start(wire.StartRequest(container_id=id, exec_id=exec_id))

    repeat(attempt)
