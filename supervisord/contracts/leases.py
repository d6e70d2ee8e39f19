"""Leases: references that keep resources from garbage collection until deleted or expired.

``containerd.io/gc.expire`` (RFC 3339) ends a lease by itself; ``containerd.io/gc.flat`` keeps
only the named resources, not what they refer to. A resource type is ``content``, ``ingests`` or
``snapshots/NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; ``created_at`` in nanoseconds, set by the store."""

    id: str
    created_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """What a lease holds: a type and an id (digest, ref or snapshot key)."""

    type: str
    id: str


class LeaseStore(Protocol):
    """Durable leases."""

    def get(self, namespace: str, id: str) -> Lease:
        """Raises NotFound."""
        ...

    async def create(self, namespace: str, lease: Lease) -> Lease:
        """Raises InvalidArgument, AlreadyExists. An id of "" gets a random one."""
        ...

    async def expire(self, namespace: str, id: str, seconds: float) -> None:
        """Lets the lease end by itself so many seconds from now, instead of when its label said.
        Raises NotFound."""
        ...

    async def delete(self, namespace: str, id: str, *, sync: bool = False) -> None:
        """Drops the lease; with ``sync`` returns after a garbage collection. Raises NotFound."""
        ...

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """All that match, in order of id."""
        ...

    async def add_resource(self, namespace: str, id: str, resource: Resource) -> None:
        """Raises NotFound (lease), Unimplemented (type), InvalidArgument."""
        ...

    async def delete_resource(self, namespace: str, id: str, resource: Resource) -> None:
        """Raises NotFound (lease), Unimplemented (type)."""
        ...

    def list_resources(self, namespace: str, id: str) -> Sequence[Resource]:
        """Raises NotFound (lease)."""
        ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What one collection deleted: records by their type (``content``, ``snapshots/NAME``).
    ``pause`` are the seconds that it took to find and delete them: without the time in which
    their data was removed, as containerd counts it too."""

    records: Mapping[str, int] = field(default_factory=dict)
    pause: float = 0.0

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.records.values())


@dataclass(frozen=True, slots=True)
class Collected:
    """One collection: what went, and how long it took in seconds."""

    swept: Swept
    seconds: float


class Collector(Protocol):
    """Garbage collection: mark from the roots, sweep what is not reached."""

    def mutated(self, *, deleted: bool) -> None:
        """Told by the stores after each commit; schedules a collection by the configured
        thresholds. Never waits."""
        ...

    async def collect(self) -> Collected:
        """One whole collection now, joined with one already running only if that one started
        after the call."""
        ...

    def due(self) -> float | None:
        """In how many seconds the next one starts; None if nothing has called for one."""
        ...


class Sweepable(Protocol):
    """What a collector collects: the metadata store, with the content and snapshots below it."""

    async def sweep(self) -> Swept:
        """One whole mark and sweep, until the data is gone from the disk too."""
        ...
