"""What garbage collection would take, and what keeps a thing alive, for people to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Doomed:
    """A thing that nothing keeps. ``type`` is as leases name it; ``size`` are the bytes on the
    disk that go with it, 0 for a blob that another namespace has too."""

    namespace: str
    type: str
    id: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A thing, and why the link before it keeps it: a field (``target``, ``parent``) or a label's
    key. Of the first link: why it is a root."""

    type: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The shortest way from a root down to a thing. ``until`` is when the root ends by itself, in
    nanoseconds; None for never."""

    links: Sequence[Link]
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that keeps a thing; nothing does where ``chains`` is empty. ``more`` roots are
    left out; ``until`` is when the last of all ends, None for never. ``shared_with`` are other
    namespaces that have the same blob."""

    type: str
    id: str
    chains: Sequence[Chain] = ()
    more: int = 0
    until: int | None = None
    shared_with: Sequence[str] = field(default_factory=tuple)


class Inspector(Protocol):
    """Looks, and changes nothing."""

    def preview(self, namespace: str = "") -> AsyncIterator[Sequence[Doomed]]:
        """What a collection would take now, in parts; of all namespaces where none is named."""
        ...

    async def explain(self, namespace: str, id: str, type: str = "") -> Sequence[Explanation]:
        """What keeps the things that are called so; the beginning of a digest will do. With
        ``type`` only those; ``snapshots`` are those of every snapshotter.

        Raises NotFound, InvalidArgument (the beginning of several)."""
        ...
