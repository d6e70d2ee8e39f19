"""Diffs: a layer applied to mounts, and a layer computed from two sets of mounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from .images import Descriptor
from .scope import Scope
from .snapshots import Mount
from .typed import TypedValue


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """``payloads``: options of stream processors by id; ``sync_fs``: flush the result to disk."""

    payloads: Mapping[str, TypedValue] = field(default_factory=dict)
    sync_fs: bool = False


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """How to write a computed layer: its media type ("" for tar+gzip), the ingest ref ("" for a
    random one), labels of the blob, and SOURCE_DATE_EPOCH in seconds (None for none)."""

    media_type: str = ""
    ref: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    source_date_epoch: int | None = None


class Application(Protocol):
    """A layer that is being extracted while its bytes come in."""

    async def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the layer; returns when they are on their way. What the extraction
        stumbles over is told by ``finish``."""
        ...

    async def finish(self) -> Descriptor:
        """After the last byte: as ``Differ.apply``."""
        ...


class Differ(Protocol):
    """Applies and computes layers."""

    def applying(
        self, media_type: str, mounts: Sequence[Mount], options: ApplyOptions
    ) -> AbstractAsyncContextManager[Application]:
        """An extraction that is fed; what is left unfinished is given up, and the mounts hold
        what was extracted so far. Raises Unimplemented (media type), InvalidArgument (mounts)."""
        ...

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """Extracts the blob into the mounts; answers the descriptor of the uncompressed tar
        (its digest is the diff-id).

        Raises NotFound (blob), Unimplemented (media type), InvalidArgument (mounts, hostile
        paths), DataLoss or FailedPrecondition (corrupt stream)."""
        ...

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        """Writes the changes from lower to upper as a blob, labelled
        ``containerd.io/uncompressed`` where compressed; answers its descriptor."""
        ...
