"""Where the blobs of an image come from: a registry, or the store that has them already."""

from __future__ import annotations

from typing import Protocol

from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import NotFound
from supervisord.contracts.scope import Scope

from ..oci.documents import Descriptor
from ..progress import EXISTS, Tracker
from ..registry.repository import Repository
from ..tree import Tree
from .fetcher import Fetcher, Tee


class Source(Protocol):
    """Brings blobs into the content store of one namespace."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    async def has(self, target: Descriptor) -> bool:
        """Whether there is any hope to get it."""
        ...

    async def document(self, target: Descriptor, limit: int) -> bytes:
        """A small blob, whole. Raises NotFound, ResourceExhausted above the limit."""
        ...

    async def blob(self, target: Descriptor, tee: Tee | None = None) -> bool:
        """Sees to it that a blob is here; true if all its bytes went through ``tee``."""
        ...


class Remote:
    """Implements Source over a repository."""

    def __init__(
        self, fetcher: Fetcher, scope: Scope, repository: Repository, tracker: Tracker
    ) -> None:
        self._fetcher = fetcher
        self._scope = scope
        self._repository = repository
        self._tracker = tracker

    @property
    def name(self) -> str:
        """The reference."""
        return str(self._repository.reference)

    async def has(self, target: Descriptor) -> bool:
        """See Source."""
        return True

    async def document(self, target: Descriptor, limit: int) -> bytes:
        """See Source."""
        return await self._fetcher.document(
            self._scope, self._repository, target, limit, self._tracker
        )

    async def blob(self, target: Descriptor, tee: Tee | None = None) -> bool:
        """See Source."""
        return await self._fetcher.blob(self._scope, self._repository, target, self._tracker, tee)


class Local:
    """Implements Source over what is here, and nothing else is."""

    def __init__(self, name: str, content: ContentStore, scope: Scope, tracker: Tracker) -> None:
        self._name = name
        self._tree = Tree(content, scope)
        self._tracker = tracker

    @property
    def name(self) -> str:
        """As it was given."""
        return self._name

    async def has(self, target: Descriptor) -> bool:
        """See Source."""
        return await self._tree.has(target)

    async def document(self, target: Descriptor, limit: int) -> bytes:
        """See Source."""
        await self.blob(target)
        return await self._tree.document(target, limit)

    async def blob(self, target: Descriptor, tee: Tee | None = None) -> bool:
        """See Source. Raises NotFound."""
        if not await self._tree.has(target):
            raise NotFound(f"{self._name}: blob {target.digest} ({target.media_type}) is missing")
        self._tracker.set(EXISTS, target)
        return False
