"""Containers: the durable description from which tasks are created.

A container is a record, not a process: an id, an OCI runtime spec, a runtime, a snapshot. It
is created, updated, and deleted; it outlives its tasks and restarts of the daemon. ``id`` and
``runtime.name`` never change after Create.

A store keeps each row's serialized ``containerd.services.containers.v1.Container`` too, so that
List is a copy (``records``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .typed import TypedValue


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime that runs the container: a name (``io.containerd.runc.v2``) and its options."""

    name: str = ""
    options: TypedValue = field(default_factory=TypedValue)


@dataclass(frozen=True, slots=True)
class Container:
    """One container. Times are nanoseconds since the epoch, set by the store."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime: Runtime = field(default_factory=Runtime)
    spec: TypedValue = field(default_factory=TypedValue)
    snapshotter: str = ""
    snapshot_key: str = ""
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandbox: str = ""
    created_at: int = 0
    updated_at: int = 0


class ContainerStore(Protocol):
    """Durable container records. Reads are synchronous, short, and never wait for a writer."""

    def get(self, namespace: str, id: str) -> Container:
        """Raises NotFound."""
        ...

    def record(self, namespace: str, id: str) -> bytes:
        """The serialized protobuf of one container. Raises NotFound."""
        ...

    def records(self, namespace: str, filters: Sequence[str]) -> Sequence[bytes]:
        """The serialized protobufs of all that match, in order of id. Raises InvalidArgument."""
        ...

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Container]:
        """All that match, in order of id. Raises InvalidArgument for a malformed filter."""
        ...

    async def create(self, namespace: str, container: Container) -> Container:
        """Creates the record, then publishes /containers/create.

        Raises InvalidArgument (id, labels, missing runtime name), AlreadyExists."""
        ...

    async def update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> Container:
        """Changes labels, image, spec, snapshot key, extensions (also ``labels.KEY`` and
        ``extensions.KEY``); publishes /containers/update.

        Raises NotFound, InvalidArgument for an immutable or unknown field."""
        ...

    async def create_record(self, namespace: str, container: Container) -> bytes:
        """As ``create``; answers the serialized protobuf."""
        ...

    async def update_record(
        self, namespace: str, container: Container, fieldpaths: Sequence[str]
    ) -> bytes:
        """As ``update``; answers the serialized protobuf."""
        ...

    async def delete(self, namespace: str, id: str) -> None:
        """Deletes the record, then publishes /containers/delete. Raises NotFound."""
        ...
