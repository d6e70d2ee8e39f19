"""Layers into snapshots: in parallel where the snapshotter allows, in one pass where bytes come in.

Every layer is prepared without a parent (``rebase``) and extracted by itself; commits go in order,
each with its parent, so that a chain is never seen half-made. Where a snapshotter needs the parent
first, layers are extracted one after the other, and only downloads go on in parallel.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisord.aio.groups import task_group
from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts import content
from supervisord.contracts import images as contract
from supervisord.contracts.content import ContentStore
from supervisord.contracts.diff import Application, ApplyOptions, Differ
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from supervisord.contracts.leases import LeaseStore, Resource
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount, SnapshotService

from .oci.documents import Config, Descriptor
from .oci.names import SNAPSHOT, UNCOMPRESSED
from .progress import EXTRACTED, EXTRACTING, Tracker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

log = logging.getLogger(__name__)

Tee = Callable[[bytes | memoryview], Awaitable[None]]

Bring = Callable[[Descriptor, Tee | None], Awaitable[bool]]
"""Sees to it that a layer's blob is here; true if all its bytes went through what was given."""

EXTRACT = "extract-"
"""What the keys of snapshots begin with that layers are extracted into; it is containerd's word."""

_REF = "containerd.io/snapshot.ref"
_DIFF_ID = "containerd.io/snapshot/diff-id"
_PARENT = "containerd.io/snapshot/parent-chain-id"
_INHERITED = "containerd.io/snapshot/"


@dataclass(frozen=True, slots=True)
class Target:
    """A snapshotter to unpack into. ``rebases``: it takes the parent at the commit."""

    name: str
    snapshots: SnapshotService
    rebases: bool = False
    overlays: bool = False


@dataclass(slots=True)
class _Layer:
    """One layer of a chain: ``chain_id`` names its snapshot, ``parent`` the one below it."""

    descriptor: Descriptor
    diff_id: str
    chain_id: str
    parent: str
    committed: asyncio.Event = field(default_factory=asyncio.Event)


class Unpacker:
    """Unpacks images. ``downloads`` and ``unpacks``: most layers at a time, of all images."""

    def __init__(
        self,
        content: ContentStore,
        leases: LeaseStore,
        differ: Differ,
        *,
        downloads: int = 6,
        unpacks: int = 4,
    ) -> None:
        self._content = content
        self._leases = leases
        self._differ = differ
        self._downloads = asyncio.Semaphore(downloads)
        self._unpacks = asyncio.Semaphore(unpacks)
        self._chains = KeyedLock()
        self._owner = TaskOwner("unpacker")

    async def close(self) -> None:
        """Waits until what was given up is cleaned away."""
        await self._owner.close(grace=10.0)

    async def fetch(self, layers: Sequence[Descriptor], bring: Bring) -> None:
        """Only brings the blobs."""
        async with task_group() as group:
            for layer in layers:
                group.spawn(self._brought(layer, bring), layer.digest)

    async def image(
        self,
        scope: Scope,
        config: Descriptor,
        parsed: Config,
        layers: Sequence[Descriptor],
        target: Target,
        bring: Bring,
        tracker: Tracker,
    ) -> str:
        """Brings and unpacks the layers of an image; answers the chain-id of the uppermost.

        Layers whose snapshot is there are not brought. Raises InvalidArgument (layers and
        diff-ids do not pair), FailedPrecondition (a layer is not what the config says), and what
        bringing, extracting and the snapshotter raise."""
        if parsed.rootfs.type not in ("", "layers"):
            raise InvalidArgument(f"config {config.digest}: rootfs.type must be layers")
        chain = _chain(config.digest, layers, parsed.diff_ids)
        missing = await self._missing(scope, target, chain)
        async with task_group() as group:
            below: _Layer | None = None
            for layer in missing:
                work = self._layer(scope, target, layer, below, bring, tracker)
                group.spawn(work, layer.chain_id)
                below = layer
        top = chain[-1].chain_id if chain else ""
        if top:
            key = f"{SNAPSHOT}.{target.name}"
            info = content.Info(config.digest, labels={key: top})
            await self._content.update(scope, info, [f"labels.{key}"])
        return top

    async def _missing(
        self, scope: Scope, target: Target, chain: Sequence[_Layer]
    ) -> Sequence[_Layer]:
        """From the lowest layer on whose snapshot is not there: a snapshot has all its parents."""
        for number in range(len(chain), 0, -1):
            if await self._held(scope, target, chain[number - 1].chain_id):
                return chain[number:]
        return chain

    async def _held(self, scope: Scope, target: Target, chain_id: str) -> bool:
        """Whether the snapshot is there and, from now on, the lease's, with all below it."""
        try:
            await target.snapshots.stat(scope, chain_id)
            if scope.lease:
                resource = Resource(f"snapshots/{target.name}", chain_id)
                await self._leases.add_resource(scope.namespace, scope.lease, resource)
                await target.snapshots.stat(scope, chain_id)  # a collection may have been first
        except NotFound:
            return False
        return True

    async def _brought(self, layer: Descriptor, bring: Bring) -> None:
        async with self._downloads:
            await bring(layer, None)

    async def _layer(
        self,
        scope: Scope,
        target: Target,
        layer: _Layer,
        below: _Layer | None,
        bring: Bring,
        tracker: Tracker,
    ) -> None:
        """From the registry to the committed snapshot."""
        if not target.rebases and below is not None and not below.committed.is_set():
            await self._brought(layer.descriptor, bring)  # there is time for it
            await below.committed.wait()
        # Another pull of the same layer: whoever comes second finds the snapshot.
        async with self._chains.hold((scope.namespace, target.name, layer.chain_id)):
            parent = "" if target.rebases else layer.parent
            try:
                await self._made(scope, target, layer, parent, below, bring, tracker)
            except (InvalidArgument, FailedPrecondition) as error:
                if parent == layer.parent:
                    raise
                # By itself it cannot be extracted: it may have hard links to files below.
                log.info("layer %s, on its parent: %s", layer.descriptor.digest, error)
                if below is not None:
                    await below.committed.wait()
                await self._made(scope, target, layer, layer.parent, None, bring, tracker)
        layer.committed.set()

    async def _made(
        self,
        scope: Scope,
        target: Target,
        layer: _Layer,
        parent: str,
        below: _Layer | None,
        bring: Bring,
        tracker: Tracker,
    ) -> None:
        """The layer's snapshot, extracted on ``parent`` and committed after ``below``."""
        async with self._prepared(scope, target, layer, parent) as prepared:
            if prepared is None:
                return
            key, mounts = prepared
            with _named(layer.descriptor):
                digest = await self._extracted(scope, layer, mounts, bring, tracker)
            if digest != layer.diff_id:
                raise FailedPrecondition(
                    f"layer {layer.descriptor.digest}: wrong diff id {digest},"
                    f" the config says {layer.diff_id}"
                )
            await self._label(scope, layer)
            if below is not None:
                await below.committed.wait()
            await self._commit(scope, target, layer, key)
            tracker.set(EXTRACTED, layer.descriptor)

    @asynccontextmanager
    async def _prepared(
        self, scope: Scope, target: Target, layer: _Layer, parent: str
    ) -> AsyncIterator[tuple[str, Sequence[Mount]] | None]:
        """A snapshot to extract into, which is removed unless it was committed. None where the
        layer's snapshot turns out to be there, also because a remote snapshotter brings it."""
        labels = _labels(layer)
        async with AsyncExitStack() as undo:
            for _ in range(3):
                key = f"{EXTRACT}{time.time_ns()}-{secrets.token_hex(4)} {layer.chain_id}"
                try:
                    mounts = await target.snapshots.prepare(scope, key, parent, labels)
                except AlreadyExists:
                    try:
                        await target.snapshots.stat(scope, layer.chain_id)
                    except NotFound:
                        continue  # the key was taken, or the snapshot went meanwhile
                    yield None
                    return
                undo.push_async_callback(
                    self._owner.shielded, self._removed(scope, target, key), "remove"
                )
                if target.rebases and target.overlays and not parent:
                    mounts = _as_overlay(mounts)
                yield key, mounts
                return
            raise AlreadyExists(f"snapshot {layer.chain_id}: is being made by somebody else")

    async def _removed(self, scope: Scope, target: Target, key: str) -> None:
        try:
            await target.snapshots.remove(scope, key)
        except NotFound:
            return  # it was committed

    async def _extracted(
        self,
        scope: Scope,
        layer: _Layer,
        mounts: Sequence[Mount],
        bring: Bring,
        tracker: Tracker,
    ) -> str:
        """The diff-id of what was extracted."""
        descriptor = layer.descriptor
        options = ApplyOptions()
        async with self._downloads, self._unpacks:
            try:
                async with self._differ.applying(
                    descriptor.media_type, mounts, options
                ) as application:
                    found = await self._streamed(descriptor, application, bring)
                    if found is not None:
                        return found
            except Unimplemented:
                await bring(descriptor, None)  # not a type that can be read from a stream
        async with self._unpacks:
            tracker.set(EXTRACTING, descriptor, 0)
            blob = contract.Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
            return (await self._differ.apply(scope, blob, mounts, options)).digest

    async def _streamed(
        self, descriptor: Descriptor, application: Application, bring: Bring
    ) -> str | None:
        """The diff-id; None where the blob was here already, or in part."""
        if not await bring(descriptor, application.write):
            return None
        return (await application.finish()).digest

    async def _label(self, scope: Scope, layer: _Layer) -> None:
        info = content.Info(layer.descriptor.digest, labels={UNCOMPRESSED: layer.diff_id})
        await self._content.update(scope, info, [f"labels.{UNCOMPRESSED}"])

    async def _commit(self, scope: Scope, target: Target, layer: _Layer, key: str) -> None:
        try:
            await target.snapshots.commit(
                scope, layer.chain_id, key, _labels(layer), layer.parent if target.rebases else ""
            )
        except AlreadyExists:
            log.debug("snapshot %s was made meanwhile", layer.chain_id)


@contextmanager
def _named(layer: Descriptor) -> Iterator[None]:
    """What is wrong with a layer says which one it is."""
    try:
        yield
    except (InvalidArgument, FailedPrecondition, DataLoss) as error:
        if layer.digest in str(error):
            raise
        raise type(error)(f"layer {layer.digest}: {str(error).removeprefix('layer: ')}") from error


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The name of each layer's snapshot on those below it (OCI image spec: config, ChainID)."""
    chain: list[str] = []
    for id in diff_ids:
        text = f"{chain[-1]} {id}" if chain else ""
        chain.append("sha256:" + hashlib.sha256(text.encode()).hexdigest() if text else id)
    return chain


def _chain(digest: str, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> list[_Layer]:
    if len(layers) != len(diff_ids):
        raise InvalidArgument(
            f"config {digest}: {len(diff_ids)} diff-ids for the manifest's {len(layers)} layers"
        )
    names = chain_ids(diff_ids)
    return [
        _Layer(layer, diff_id, name, parent)
        for layer, diff_id, name, parent in zip(
            layers, diff_ids, names, ["", *names][: len(names)], strict=True
        )
    ]


def _labels(layer: _Layer) -> Mapping[str, str]:
    """What remote snapshotters and those that look for layers want to know."""
    labels = {
        key: value
        for key, value in (layer.descriptor.annotations or {}).items()
        if key.startswith(_INHERITED)
    }
    labels[_REF] = layer.chain_id
    labels[_DIFF_ID] = layer.diff_id
    if layer.parent:
        labels[_PARENT] = layer.parent
    return labels


def _as_overlay(mounts: Sequence[Mount]) -> Sequence[Mount]:
    """A snapshot without a parent is a bind of its folder. Extracted as what it is going to be, the
    upper folder of an overlay, its whiteouts become marks instead of deleting nothing."""
    if len(mounts) == 1 and mounts[0].type == "bind":
        return [Mount("overlay", "overlay", (f"upperdir={mounts[0].source}",))]
    return mounts
