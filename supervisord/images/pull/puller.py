"""A pull: from a reference to content, snapshots, and a name for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from supervisord.aio.groups import task_group
from supervisord.contracts import content
from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import NotFound
from supervisord.contracts.scope import Scope

from ..oci import documents, media
from ..oci.documents import LARGEST_CONFIG, LARGEST_MANIFEST, Descriptor
from ..oci.names import holds
from ..oci.platforms import Platform, rank
from ..progress import Tracker
from ..selection import Selection
from ..unpacking import Target, Unpacker
from .fetcher import Tee
from .sources import Source

log = logging.getLogger(__name__)

_MOST_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Unpack:
    """Where images of a platform are unpacked."""

    platform: Platform
    target: Target


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of an image is brought. ``all_metadata``: manifests and configs of other platforms,
    too, without their layers."""

    selection: Selection
    unpacks: Sequence[Unpack] = ()
    all_metadata: bool = False


class Puller:
    """Brings what a descriptor refers to."""

    def __init__(self, content: ContentStore, unpacker: Unpacker) -> None:
        self._content = content
        self._unpacker = unpacker

    async def pull(
        self,
        scope: Scope,
        source: Source,
        target: Descriptor,
        wanted: Wanted,
        tracker: Tracker,
    ) -> None:
        """All of an image; its documents before what they name, and held by labels at once.

        Raises NotFound (no manifest for the platforms), and what fetching, parsing and unpacking
        raise."""
        tracker.children(None, [target])
        job = _Job(self._content, self._unpacker, scope, source, wanted, tracker)
        await job.bring(target, depth=0)
        if not job.images:
            names = ", ".join(map(str, wanted.selection.platforms)) or "any platform"
            raise NotFound(f"{source.name}: has no manifest for {names}")


@dataclass(slots=True)
class _Job:
    """One pull."""

    content: ContentStore
    unpacker: Unpacker
    scope: Scope
    source: Source
    wanted: Wanted
    tracker: Tracker
    images: int = 0

    async def bring(self, target: Descriptor, depth: int, *, layers: bool = True) -> None:
        """A descriptor and all below it."""
        if target.is_index:
            await self._index(target, depth, layers=layers)
        elif target.is_manifest:
            await self._manifest(target, layers=layers)
        else:
            await self.source.blob(target)
            self.images += depth == 0  # somebody wants just a blob by its digest

    async def _index(self, target: Descriptor, depth: int, *, layers: bool) -> None:
        if depth >= _MOST_DEPTH:
            raise NotFound(f"index {target.digest}: indexes within indexes, {depth} deep")
        index = documents.index(await self.source.document(target, LARGEST_MANIFEST), target.digest)
        manifests = [one for one in index.manifests or () if await self.source.has(one)]
        chosen = self.wanted.selection.of(manifests)
        others = [one for one in manifests if one not in chosen] if self.wanted.all_metadata else []
        # Labels are of all that is brought, in the order of the index.
        await self._hold(target, [one for one in manifests if one in chosen or one in others])
        async with task_group() as group:
            for one in chosen:
                group.spawn(self.bring(one, depth + 1, layers=layers), one.digest)
            for one in others:
                group.spawn(self.bring(one, depth + 1, layers=False), one.digest)

    async def _manifest(self, target: Descriptor, *, layers: bool) -> None:
        manifest = documents.manifest(
            await self.source.document(target, LARGEST_MANIFEST), target.digest
        )
        below = manifest.layers or ()
        await self._hold(target, [manifest.config, *below])
        self.images += layers
        if manifest.config.media_type not in media.CONFIGS:
            await self._artifact(manifest, layers=layers)
            return
        data = await self.source.document(manifest.config, LARGEST_CONFIG)
        config = documents.config(data, manifest.config.digest)
        if not layers:
            return
        platform = target.target or config.platform
        if target.target is None and not self.wanted.selection.wants(platform):
            self.images -= 1
            return
        unpack = self._unpack_of(platform)
        if unpack is None or not all(media.is_layer(layer.media_type) for layer in below):
            await self.unpacker.fetch(below, self._brought)
            return
        await self.unpacker.image(
            self.scope, manifest.config, config, below, unpack, self._brought, self.tracker
        )

    async def _artifact(self, manifest: documents.Manifest, *, layers: bool) -> None:
        """Something that is no image to run: all its blobs, whatever they are."""
        await self.source.blob(manifest.config)
        if layers:
            await self.unpacker.fetch(manifest.layers or (), self._brought)

    def _unpack_of(self, platform: Platform | None) -> Target | None:
        for unpack in self.wanted.unpacks:
            if platform is None or rank(unpack.platform, platform) is not None:
                return unpack.target
        return None

    async def _brought(self, layer: Descriptor, tee: Tee | None) -> bool:
        return await self.source.blob(layer, tee)

    async def _hold(self, target: Descriptor, children: Sequence[Descriptor]) -> None:
        self.tracker.children(target, children)
        labels = holds(children)
        if labels:
            info = content.Info(target.digest, labels=labels)
            await self.content.update(self.scope, info, [f"labels.{key}" for key in labels])
