"""Streams: messages both ways between a client and a part of the daemon that it names them to.

A client opens a stream under an id of its choice, in its namespace, and then hands the id to
another service (a transfer's "read from this stream"), which gets the stream by it. Each message
is a typed value. A stream ends when its service closes it, when the client goes away, or with the
lease that it was opened under. Both directions are bounded: who sends waits for who receives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .scope import Scope
from .typed import TypedValue


class Stream(Protocol):
    """The daemon's end of one stream; one sender and one receiver at a time."""

    async def send(self, value: TypedValue) -> None:
        """Returns when there is room for it. Raises Cancelled when the stream has ended."""
        ...

    async def receive(self) -> TypedValue | None:
        """The next message; None when the client has said its last one. Raises Cancelled when
        the client went away, or the stream was closed here."""
        ...

    async def close(self) -> None:
        """Ends it after what was sent."""
        ...


class StreamGetter(Protocol):
    """Finds streams for services that were told an id."""

    def get(self, namespace: str, id: str) -> Stream:
        """Raises NotFound."""
        ...


class StreamManager(StreamGetter, Protocol):
    """All open streams."""

    def register(self, scope: Scope, id: str, stream: Stream) -> Callable[[], None]:
        """Makes a stream known; answers what forgets it again.

        Raises InvalidArgument (id), AlreadyExists, ResourceExhausted (too many streams)."""
        ...
