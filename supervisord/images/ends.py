"""The ends of a transfer: what images come from and go to.

A registry; the image store; an archive that a client sends; an archive that it is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .oci.platforms import Platform
from .registry.connections import Access


class Sink(Protocol):
    """Where an archive is written to."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None:
        """Tells the client that this was all, or that there will be no more."""
        ...


@dataclass(frozen=True, slots=True)
class Registry:
    """A reference, and how its registry is asked."""

    reference: str
    access: Access = field(default_factory=Access)

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


@dataclass(frozen=True, slots=True)
class NameRule:
    """A name for what is brought: the name itself, or with ``is_prefix`` what annotations say below
    it. ``add_digest`` makes ``NAME@DIGEST``; ``skip_named`` only where there is no other name;
    ``allow_overwrite`` takes full names from annotations that are not below the prefix."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named: bool = False


@dataclass(frozen=True, slots=True)
class UnpackInto:
    """A request to unpack: for a platform, into a snapshotter ("" for the default one)."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """The image store of the namespace. ``platforms`` empty stands for all, ``limit`` for the most
    manifests (0: all that match)."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: Sequence[Platform] = ()
    all_metadata: bool = False
    limit: int = 0
    names: Sequence[NameRule] = ()
    unpacks: Sequence[UnpackInto] = ()

    def __str__(self) -> str:
        return f"Local Image Store ({self.name})"


@dataclass(frozen=True, slots=True)
class Import:
    """An archive that comes in: OCI's layout or docker's, maybe compressed."""

    data: AsyncIterator[bytes]
    media_type: str = ""
    force_compress: bool = False

    def __str__(self) -> str:
        return "Image Archive Import"


@dataclass(frozen=True, slots=True)
class Export:
    """An archive that goes out. ``platforms`` empty stands for all with ``all_platforms``, else for
    this machine's."""

    sink: Sink
    media_type: str = ""
    platforms: Sequence[Platform] = ()
    all_platforms: bool = False
    skip_manifest_json: bool = False
    skip_nondistributable: bool = False

    def __str__(self) -> str:
        return "Image Archive Export"


End = Registry | Store | Import | Export
