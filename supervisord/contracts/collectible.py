"""Resources that live outside the metadata and take part in garbage collection: mounts, streams.

A store of such resources is attached to the collection (``metadata.garbage.attach``). Each
collection asks it for all that it has, and hands back what nothing keeps:

* a resource lives as long as it is ``active``, its lease exists and has not expired, something
  live refers to it (``containerd.io/gc.ref.KIND[.X|/X]`` among the labels of content, an image, a
  snapshot or a container), or something live is named in its own ``gc.bref.*`` labels;
* its own ``gc.ref.*`` labels keep what they name. What a new resource refers to needs a lease
  until the store tells of the resource: a collection under way has asked already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Collectible:
    """One resource. ``lease`` is "" where it was made under none; ``active`` keeps it whatever
    refers to it."""

    namespace: str
    key: str
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: str = ""
    active: bool = False


class CollectibleStore(Protocol):
    """All resources of one kind."""

    @property
    def kind(self) -> str:
        """A word: what comes after ``containerd.io/gc.ref.`` in the labels that refer to them."""
        ...

    def resources(self) -> Sequence[Collectible]:
        """All there are, from memory: it is called on the event loop by every collection."""
        ...

    async def collect(self, resource: Collectible) -> None:
        """Ends a resource that nothing keeps, unless it has changed since ``resources`` told of
        it. Whatever it raises is reported, and the next collection tries again."""
        ...
