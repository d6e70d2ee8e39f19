"""Namespaces: the partition in which every other record lives.

A namespace exists from its Create, or from the first record created in it, until its Delete.
Delete is refused with FailedPrecondition while any container, image, blob or snapshot is left in
it; the message names which kinds. Leases and ingests go with it, as in containerd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and its labels (``containerd.io/defaults/...`` among them)."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceStore(Protocol):
    """Durable namespace records."""

    def get(self, name: str) -> Namespace:
        """A namespace that does not exist has no labels, as in containerd; that is no error."""
        ...

    def list(self) -> Sequence[Namespace]:
        """All namespaces in order of name. The wire's List has filters; see contracts.filters."""
        ...

    async def create(self, namespace: Namespace) -> Namespace:
        """Raises InvalidArgument, AlreadyExists."""
        ...

    async def update(self, namespace: Namespace, fieldpaths: Sequence[str]) -> Namespace:
        """Replaces all labels, or with ``labels.KEY`` paths only those; an empty value removes.
        A namespace that does not exist is created.

        Raises InvalidArgument for any other path, and for a malformed name."""
        ...

    async def delete(self, name: str) -> None:
        """Raises NotFound, FailedPrecondition while something is left in it."""
        ...
