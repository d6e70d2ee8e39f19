"""Transfers: images moved between registries, the store and archives.

Whatever is moved belongs to a lease from its first byte to the moment that it has a name: to the
caller's, or to one that is made for the transfer. That one is dropped when the transfer has
succeeded; after a failure it holds what came for an hour more, so that a retry need not bring it
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from supervisord.aio.groups import task_group
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import Error, InvalidArgument, NotFound, Unimplemented
from supervisord.contracts.images import Image, ImageStore
from supervisord.contracts.leases import Lease, LeaseStore
from supervisord.contracts.scope import Scope

from . import reference
from .archive.exporting import Exporter
from .archive.importing import Importer
from .ends import End, Export, Import, Registry, Store, UnpackInto
from .late import TRANSFER
from .naming import named, names_of, of_image
from .oci.documents import Descriptor
from .oci.platforms import Platform, here
from .progress import Report, Tracker
from .pull.fetcher import Fetcher
from .pull.limits import Limits
from .pull.puller import Puller, Unpack, Wanted
from .pull.sources import Local, Remote
from .push.pusher import Pusher
from .registry.connections import connected
from .registry.keeper import NOBODY, Keeper
from .registry.repository import Repository
from .registry.session import Patience
from .selection import Selection
from .tree import Tree
from .unpacking import EXTRACT, Target, Unpacker
from .verifying import Verifier, verified

log = logging.getLogger(__name__)

_LEASE_HOURS = 24
_KEPT_SECONDS = 3600.0
_LAST_WORDS_SECONDS = 10.0
_EXPIRE = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True)
class Defaults:
    """``targets``: snapshotters by name; ``snapshotter``: the one to unpack into where a client
    names none; ``roots`` and ``keeper``: folders of hosts and credentials where it has none;
    ``ranges``: parts of one blob that are downloaded at a time; ``uploads``: blobs that are
    pushed at a time; ``verifiers``: who is asked before an image is pulled."""

    targets: Mapping[str, Target]
    snapshotter: str = "overlayfs"
    roots: Sequence[str] = ()
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)
    ranges: int = 1
    keeper: Keeper = NOBODY
    uploads: int = 6
    verifiers: Mapping[str, Verifier] = field(default_factory=dict)


class Transfers:
    """All transfers of the daemon."""

    def __init__(
        self,
        content: ContentStore,
        images: ImageStore,
        leases: LeaseStore,
        unpacker: Unpacker,
        defaults: Defaults,
    ) -> None:
        self._content = content
        self._images = images
        self._leases = leases
        self._defaults = defaults
        self._fetcher = Fetcher(
            content,
            defaults.limits,
            ranges=defaults.ranges,
            idle_seconds=defaults.patience.stall,
        )
        self._puller = Puller(content, unpacker)
        self._pusher = Pusher(content, uploads=defaults.uploads)
        self._exporter = Exporter(content)
        self._importer = Importer(content)
        self._owner = TaskOwner("transfers")

    async def close(self) -> None:
        """Waits for what is cleaned away."""
        await self._owner.close(grace=10.0)

    async def recover(self, begun: Sequence[tuple[str, str]]) -> None:
        """Removes what transfers have left in half that ended with an earlier daemon, by namespace
        and lease: snapshots in which layers were extracted. What was downloaded stays until the
        leases end."""
        for namespace, lease in begun:
            scope = Scope(namespace)
            try:
                resources = self._leases.list_resources(namespace, lease)
            except NotFound:
                continue  # somebody has deleted it meanwhile
            for resource in resources:
                kind, _, name = resource.type.partition("/")
                target = self._defaults.targets.get(name)
                if kind == "snapshots" and target and resource.id.startswith(EXTRACT):
                    await self._removed(scope, target, resource.id)

    async def _removed(self, scope: Scope, target: Target, key: str) -> None:
        try:
            await target.snapshots.remove(scope, key)
        except Error as error:
            log.info("snapshot %s of a transfer stays: %s", key, error)

    async def transfer(
        self, scope: Scope, source: End, destination: End, report: Report | None = None
    ) -> None:
        """Moves an image. Raises Unimplemented (no way from here to there), and what both ends
        raise."""
        name = destination.name if isinstance(destination, Store) else ""
        if isinstance(source, Registry):
            name = source.reference
        tracker = Tracker(name, report)
        async with task_group() as group:
            telling = group.spawn(tracker.run(), "progress")
            try:
                async with self._leased(scope) as held:
                    await self._moved(held, source, destination, tracker)
            finally:
                tracker.close()
            # Who does not listen to the last words does not keep the transfer from its end.
            await asyncio.wait([telling], timeout=_LAST_WORDS_SECONDS)
            telling.cancel()

    async def _moved(self, scope: Scope, source: End, destination: End, tracker: Tracker) -> None:
        match source, destination:
            case Registry(), Store():
                await self._pull(scope, source, destination, tracker)
            case Store(), Registry():
                await self._push(scope, source, destination, tracker)
            case Store(), Store():
                await self._tag(scope, source, destination, tracker)
            case Store(), Export():
                await self._export(scope, source, destination, tracker)
            case Import(), Store():
                await self._import(scope, source, destination, tracker)
            case Import(), Export():
                await self._echo(source, destination)
            case _:
                raise Unimplemented(f"unable to transfer from {source} to {destination}")

    async def _pull(self, scope: Scope, source: Registry, store: Store, tracker: Tracker) -> None:
        names = names_of(store)
        wanted = self._wanted(store)
        tracker.say(f"Resolving from {source}")
        async with self.connected(source) as repository:
            target = await repository.resolve()
            await verified(self._defaults.verifiers, source.reference, target)
            tracker.say(f"Pulling from {source}")
            tracker.say("fetching image content", source.reference, target)
            remote = Remote(self._fetcher, scope, repository, tracker)
            await self._puller.pull(scope, remote, target, wanted, tracker)
        await self._save(scope, target, names.of_target(target), tracker)
        tracker.say(f"Completed pull from {source}")

    async def _push(
        self, scope: Scope, store: Store, destination: Registry, tracker: Tracker
    ) -> None:
        parsed = reference.parse(destination.reference)
        if not parsed.target:
            raise InvalidArgument(f"{parsed}: a tag or a digest is needed to push to")
        image = self._image(scope, store)
        target = of_image(image)
        tracker.say(f"Pushing to {destination}")
        tracker.say("pushing content", image.name, target)
        async with self.connected(destination) as repository:
            selection = Selection(store.platforms, store.limit)
            await self._pusher.push(scope, target, repository, selection, tracker)
        tracker.say("pushed", destination.reference, target)
        tracker.say(f"Completed push to {destination}")

    async def _tag(self, scope: Scope, source: Store, store: Store, tracker: Tracker) -> None:
        target = of_image(self._image(scope, source))
        await self._save(scope, target, names_of(store).of_target(target), tracker)

    async def _export(
        self, scope: Scope, source: Store, destination: Export, tracker: Tracker
    ) -> None:
        tracker.say("Exporting")
        try:
            names = [source.name] if source.name else []
            for rule in source.names:
                if rule.is_prefix:
                    raise Unimplemented("source: images cannot be looked up by a prefix")
                names.append(rule.name)
            if not names:
                raise InvalidArgument("source: the image store needs a name")
            images = [self._images.get(scope.namespace, name) for name in names]
            await self._exporter.export(scope, images, destination)
        finally:
            await destination.sink.close()
        tracker.say("Completed export")

    async def _echo(self, source: Import, destination: Export) -> None:
        """What comes in goes out as it is."""
        try:
            async for piece in source.data:
                await destination.sink.write(piece)
        finally:
            await destination.sink.close()

    async def _import(self, scope: Scope, source: Import, store: Store, tracker: Tracker) -> None:
        names = names_of(store)
        wanted = self._wanted(store)
        tracker.say("Importing")
        index = await self._importer.load(scope, source.data, compress=source.force_compress)
        local = Local("archive", self._content, scope, tracker)
        found = dict.fromkeys(names.of_target(index), index) if names.any_target else {}
        missing = ""
        for one in await Tree(self._content, scope).children(index):
            if await local.has(one):
                found.update(dict.fromkeys(names.of_annotations(one), one))
            else:
                missing = one.digest
        if missing and not found:
            raise NotFound(f"archive: {missing} is missing, which its index lists")
        if not found:  # before anything is unpacked for nothing
            raise NotFound("no image name found: the archive has none, and none was given")
        await self._puller.pull(scope, local, index, wanted, tracker)
        for name, target in found.items():
            labels = names.labels_of(name)
            await self._save(scope, target, {name: labels}, tracker)
        tracker.say("Completed import")

    async def _save(
        self,
        scope: Scope,
        target: Descriptor,
        names: Mapping[str, Mapping[str, str]],
        tracker: Tracker,
    ) -> None:
        if not names:
            raise NotFound("no image name found")
        for name, labels in names.items():
            await named(self._images, scope, name, target, labels)
            tracker.say("saved", name, target)

    def _image(self, scope: Scope, store: Store) -> Image:
        if not store.name:
            raise InvalidArgument("source: the image store needs a name")
        return self._images.get(scope.namespace, store.name)

    def connected(self, end: Registry) -> AbstractAsyncContextManager[Repository]:
        """The repository of a reference, asked as the client says and else as is configured; its
        connections are closed with the block. Raises InvalidArgument."""
        access = end.access
        if not access.roots:
            access = replace(access, roots=self._defaults.roots)
        if access.keeper is NOBODY:
            access = replace(access, keeper=self._defaults.keeper)
        return connected(reference.parse(end.reference), access, self._defaults.patience)

    def _wanted(self, store: Store) -> Wanted:
        unpacks = [self._unpack(request) for request in store.unpacks]
        return Wanted(Selection(store.platforms, store.limit), unpacks, store.all_metadata)

    def _unpack(self, request: UnpackInto) -> Unpack:
        name = request.snapshotter or self._defaults.snapshotter
        target = self._defaults.targets.get(name)
        if target is None:
            known = ", ".join(self._defaults.targets)
            raise InvalidArgument(f"unpack: snapshotter {name!r} is not one of {known}")
        platform = request.platform
        if platform == Platform("", ""):
            platform = here()
        return Unpack(platform, target)

    @asynccontextmanager
    async def _leased(self, scope: Scope) -> AsyncIterator[Scope]:
        if scope.lease:
            yield scope
            return
        until = datetime.now(UTC) + timedelta(hours=_LEASE_HOURS)
        expires = until.isoformat(timespec="seconds").replace("+00:00", "Z")
        labels = {_EXPIRE: expires, TRANSFER: "running"}
        lease = await self._leases.create(scope.namespace, Lease("", labels=labels))
        try:
            yield Scope(scope.namespace, lease.id)
        except BaseException:
            await self._owner.shielded(self._kept(scope.namespace, lease.id), "lease")
            raise
        await self._owner.shielded(self._dropped(scope.namespace, lease.id), "lease")

    async def _kept(self, namespace: str, lease: str) -> None:
        """What a transfer brought that failed, or was given up: its blobs are of use to a retry."""
        try:
            if self._leases.list_resources(namespace, lease):
                await self._leases.expire(namespace, lease, _KEPT_SECONDS)
            else:
                await self._leases.delete(namespace, lease)
        except Error as error:  # somebody else's delete, or a disk that is full: it ends in a day
            log.info("lease %s of a transfer stays as it is: %s", lease, error)

    async def _dropped(self, namespace: str, lease: str) -> None:
        try:
            await self._leases.delete(namespace, lease)
        except NotFound:
            log.info("lease %s of a transfer was deleted by somebody else", lease)
