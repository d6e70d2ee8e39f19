"""Images: a name that points at a target descriptor in the content store.

Names are free text of the client's choice (most often a reference). Deleting an image only
removes the name; its content goes when garbage collection finds nothing else that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An OCI content descriptor; ``size`` in bytes."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """One image. Times are nanoseconds since the epoch, set by the store."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    """Durable image records."""

    def get(self, namespace: str, name: str) -> Image:
        """Raises NotFound."""
        ...

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Image]:
        """All that match, in order of name. Raises InvalidArgument for a malformed filter."""
        ...

    async def create(self, namespace: str, image: Image, *, lease: str = "") -> Image:
        """Creates the record, then publishes /images/create. ``lease`` holds an image that
        expires (``containerd.io/gc.expire``); others need none.

        Raises InvalidArgument (empty name, digest, size, media type, labels), AlreadyExists,
        NotFound (lease)."""
        ...

    async def update(
        self, namespace: str, image: Image, fieldpaths: Sequence[str], *, lease: str = ""
    ) -> Image:
        """Changes labels, target, annotations by path; all of them without one. Publishes
        /images/update. Raises NotFound, InvalidArgument."""
        ...

    async def delete(self, namespace: str, name: str, target: Descriptor | None = None) -> None:
        """Deletes the name, and only if it still points at ``target`` when that is given.
        Publishes /images/delete. Raises NotFound."""
        ...
