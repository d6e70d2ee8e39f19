"""The open streams by namespace and id; implements contracts.streams.StreamManager
and contracts.collectible.CollectibleStore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supervisord.contracts.collectible import Collectible
from supervisord.contracts.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from supervisord.contracts.scope import Scope
from supervisord.contracts.streams import Stream

MAX_STREAMS = 4096
MAX_ID = 1024


@dataclass(frozen=True, slots=True)
class _Registered:
    scope: Scope
    stream: Stream


class Streams:
    """All of the daemon's."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], _Registered] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def register(self, scope: Scope, id: str, stream: Stream) -> Callable[[], None]:
        """See the contract."""
        if not id or len(id.encode()) > MAX_ID or "\0" in id:
            raise InvalidArgument(f"id: must have 1 to {MAX_ID} bytes, and no zero byte")
        key = (scope.namespace, id)
        if key in self._streams:
            raise AlreadyExists(f'stream "{id}": already exists')
        if len(self._streams) >= MAX_STREAMS:
            raise ResourceExhausted(f"there are {MAX_STREAMS} open streams already")
        registered = self._streams[key] = _Registered(scope, stream)

        def forget() -> None:
            if self._streams.get(key) is registered:
                del self._streams[key]

        return forget

    def get(self, namespace: str, id: str) -> Stream:
        """Raises NotFound."""
        registered = self._streams.get((namespace, id))
        if registered is None:
            raise NotFound(f'stream "{id}": not found')
        return registered.stream

    kind = "stream"

    def resources(self) -> Sequence[Collectible]:
        """A stream that was opened under a lease ends with it; another one by itself."""
        return [
            Collectible(namespace, id, lease=found.scope.lease, active=not found.scope.lease)
            for (namespace, id), found in self._streams.items()
        ]

    async def collect(self, resource: Collectible) -> None:
        """Closes a stream, unless the id stands for another one by now."""
        key = (resource.namespace, resource.key)
        found = self._streams.get(key)
        if found is not None and found.scope == Scope(resource.namespace, resource.lease):
            del self._streams[key]
            await found.stream.close()
