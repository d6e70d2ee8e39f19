"""A push: all that an image refers to, blobs first, then manifests, and its tag last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from supervisord.aio.groups import task_group
from supervisord.contracts import content
from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import InvalidArgument, NotFound
from supervisord.contracts.scope import Scope

from ..oci import media
from ..oci.documents import Descriptor
from ..oci.names import SOURCE
from ..progress import COMPLETE, EXISTS, UPLOADING, Tracker
from ..registry.repository import Repository
from ..registry.uploads import Uploads
from ..selection import Selection
from ..tree import Tree

_PIECE = 1 << 20
_MOST_SOURCES = 1


@dataclass(slots=True)
class _Plan:
    """Blobs in any order; manifests so that each comes after what it names."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    documents: dict[str, Descriptor] = field(default_factory=dict)


class Pusher:
    """Sends images. ``uploads``: most blobs at a time, of all pushes."""

    def __init__(self, store: ContentStore, *, uploads: int = 6) -> None:
        self._store = store
        self._uploads = asyncio.Semaphore(uploads)

    async def push(
        self,
        scope: Scope,
        target: Descriptor,
        repository: Repository,
        selection: Selection,
        tracker: Tracker,
    ) -> None:
        """Under the tag or the digest of the repository's reference.

        Raises NotFound (a blob is not here), InvalidArgument (the reference's digest is another
        one), and what requests raise."""
        reference = repository.reference
        if reference.digest not in ("", target.digest):
            raise InvalidArgument(f"{reference}: the image is {target.digest}")
        tree = Tree(self._store, scope)
        plan = _Plan()
        tracker.children(None, [target])
        await self._planned(tree, target, selection, plan, tracker)
        uploads = Uploads(repository)
        async with task_group() as group:
            for blob in plan.blobs.values():
                group.spawn(self._blob(scope, uploads, blob, tracker), blob.digest)
        for document in plan.documents.values():
            is_root = document.digest == target.digest
            name = reference.tag if is_root and reference.tag else document.digest
            await self._document(tree, uploads, document, name, tracker)

    async def _planned(
        self,
        tree: Tree,
        target: Descriptor,
        selection: Selection,
        plan: _Plan,
        tracker: Tracker,
    ) -> None:
        """Raises NotFound for what is not here before anything is sent."""
        if not await tree.has(target):
            raise NotFound(
                f"content {target.digest} ({target.media_type}) is not here to be pushed"
            )
        if not (target.is_index or target.is_manifest):
            plan.blobs[target.digest] = target
            return
        children = await tree.children(target)
        if target.is_index:
            children = selection.of(children)
        wanted = [child for child in children if not await self._is_elsewhere(tree, child)]
        tracker.children(target, wanted)
        for child in wanted:
            await self._planned(tree, child, Selection(), plan, tracker)
        plan.documents[target.digest] = target

    async def _is_elsewhere(self, tree: Tree, child: Descriptor) -> bool:
        """Whether it is a layer that need not be in a registry, and is not here."""
        return media.is_nondistributable(child.media_type) and not await tree.has(child)

    async def _blob(
        self, scope: Scope, uploads: Uploads, blob: Descriptor, tracker: Tracker
    ) -> None:
        async with self._uploads:
            if await uploads.has(blob):
                tracker.set(EXISTS, blob)
                return
            info = await self._store.info(scope, blob.digest)
            sources = _sources(info, uploads.reference.host, uploads.reference.repository)
            reader = await self._store.reader(scope, blob.digest)
            try:

                async def read(offset: int) -> AsyncIterator[bytes]:
                    while piece := await reader.read(offset, _PIECE):
                        yield piece
                        offset += len(piece)
                        tracker.set(UPLOADING, blob, offset)

                was_sent = await uploads.blob(blob, read, sources)
            finally:
                reader.close()
            tracker.set(COMPLETE if was_sent else EXISTS, blob)

    async def _document(
        self, tree: Tree, uploads: Uploads, document: Descriptor, name: str, tracker: Tracker
    ) -> None:
        known = await uploads.has(document) if name == document.digest else False
        if known or await uploads.tagged(name) == document.digest:
            tracker.set(EXISTS, document)
            return
        await uploads.manifest(document, await tree.document(document), name)
        tracker.set(COMPLETE, document)


def _sources(info: content.Info, host: str, own: str) -> Sequence[str]:
    """Repositories of the registry that the blob came from, the nearest by name first."""
    names = info.labels.get(f"{SOURCE}.{host}", "").split(",")
    others = [name for name in names if name and name != own]
    others.sort(key=lambda name: -_alike(name, own))
    return others[:_MOST_SOURCES]


def _alike(one: str, other: str) -> int:
    """How many path components two names begin with alike."""
    count = 0
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
