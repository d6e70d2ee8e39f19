"""Snapshots: layered filesystems, from an active key to a committed name.

``prepare(key, parent)`` makes a writable *active* snapshot over a *committed* parent ("" for an
empty one) and says how to mount it. ``commit(name, key)`` turns it into a *committed* snapshot
under ``name``; the key is gone afterwards. ``view(key, parent)`` is a read-only active one that
cannot be committed. Keys and names share one space per snapshotter (and namespace, above the
metadata layer). A snapshot with children cannot be removed (FailedPrecondition). Only active and
view snapshots have mounts. Mounting is the caller's business: a snapshotter never mounts anything
that outlives a call, and a remove while still mounted is permitted.

``Snapshotter`` is what one implementation offers, without namespaces; ``SnapshotService`` is the
namespaced form that the metadata layer builds over it, with labels for garbage collection.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .scope import Scope


class Kind(enum.IntEnum):
    """The kinds, with their numbers on the wire (containerd.services.snapshots.v1.Kind)."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: ``type`` (overlay, bind, ...), ``source``, ``target`` below the mount point
    ("" for the point itself), and options as mount(8) writes them."""

    type: str
    source: str
    options: Sequence[str] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot. Times in nanoseconds since the epoch, set by the snapshotter."""

    name: str
    parent: str = ""
    kind: Kind = Kind.UNKNOWN
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot itself takes, without its parents: bytes and inodes."""

    size: int = 0
    inodes: int = 0


class Snapshotter(Protocol):
    """One implementation. Every method is safe to call concurrently."""

    async def stat(self, key: str) -> Info:
        """Raises NotFound."""
        ...

    async def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Changes labels (``labels``, ``labels.KEY``; all labels without a path).

        Raises NotFound, InvalidArgument for an immutable field."""
        ...

    async def usage(self, key: str) -> Usage:
        """Raises NotFound."""
        ...

    async def mounts(self, key: str) -> Sequence[Mount]:
        """How to mount an active or view snapshot. Raises NotFound, FailedPrecondition."""
        ...

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """Raises AlreadyExists (key), NotFound (parent), InvalidArgument (parent not committed)."""
        ...

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """As ``prepare``, read-only."""
        ...

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        """Commits; the labels replace the active snapshot's. ``parent`` gives one to a snapshot
        that was prepared without (offered by those with the capability ``rebase``).

        Raises NotFound (key, parent), AlreadyExists (name), FailedPrecondition (not active, or
        the parent is not committed), InvalidArgument (it has another parent)."""
        ...

    async def remove(self, key: str) -> None:
        """Raises NotFound, FailedPrecondition while it has children."""
        ...

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """All that match, in no promised order. Raises InvalidArgument for a malformed filter."""
        ...

    async def cleanup(self) -> None:
        """Frees what earlier removes left on disk. Unimplemented where there is nothing to do."""
        ...

    async def close(self) -> None: ...


def is_remote(snapshotter: object) -> bool:
    """Whether a snapshotter says that it is in another process (``remote = True``): one that may
    be away, or hang, and that nobody but its callers waits for."""
    return bool(getattr(snapshotter, "remote", False))


class SnapshotService(Protocol):
    """The namespaced snapshotter of one name (``overlayfs``), as clients and engines use it.

    Publishes /snapshot/prepare, /snapshot/commit and /snapshot/remove."""

    async def stat(self, scope: Scope, key: str) -> Info: ...

    async def update(self, scope: Scope, info: Info, fieldpaths: Sequence[str]) -> Info: ...

    async def usage(self, scope: Scope, key: str) -> Usage: ...

    async def mounts(self, scope: Scope, key: str) -> Sequence[Mount]: ...

    async def prepare(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]: ...

    async def view(
        self, scope: Scope, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]: ...

    async def commit(
        self, scope: Scope, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None: ...

    async def remove(self, scope: Scope, key: str) -> None: ...

    def walk(self, scope: Scope, filters: Sequence[str] = ()) -> AsyncIterator[Info]: ...

    async def cleanup(self, scope: Scope) -> None: ...
