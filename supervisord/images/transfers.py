"""Transfers: images moved between registries, the store and archives.

Whatever is moved belongs to a lease from its first byte to the moment that it has a name: to the
caller's, or to one that is made for the transfer and dropped at its end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from supervisord.aio.groups import task_group
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import InvalidArgument, NotFound, Unimplemented
from supervisord.contracts.images import ImageStore
from supervisord.contracts.leases import Lease, LeaseStore
from supervisord.contracts.scope import Scope

from . import reference
from .ends import End, Registry, Store, UnpackInto
from .naming import named, names_of
from .oci.documents import Descriptor
from .oci.platforms import Platform, here
from .progress import Report, Tracker
from .pull.puller import Puller, Unpack, Wanted
from .registry.connections import connected
from .registry.session import Patience
from .selection import Selection
from .unpacking import Target

log = logging.getLogger(__name__)

_LEASE_HOURS = 24
_EXPIRE = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True)
class Defaults:
    """``targets``: snapshotters by name; ``snapshotter``: the one to unpack into where a client
    names none; ``roots``: folders of hosts where it names none."""

    targets: Mapping[str, Target]
    snapshotter: str = "overlayfs"
    roots: Sequence[str] = ()
    patience: Patience = field(default_factory=Patience)


class Transfers:
    """All transfers of the daemon."""

    def __init__(
        self, images: ImageStore, leases: LeaseStore, puller: Puller, defaults: Defaults
    ) -> None:
        self._images = images
        self._leases = leases
        self._puller = puller
        self._defaults = defaults
        self._owner = TaskOwner("transfers")

    async def close(self) -> None:
        """Waits for what is cleaned away."""
        await self._owner.close(grace=10.0)

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
            group.spawn(tracker.run(), "progress")
            try:
                async with self._leased(scope) as held:
                    await self._moved(held, source, destination, tracker)
            finally:
                tracker.close()

    async def _moved(self, scope: Scope, source: End, destination: End, tracker: Tracker) -> None:
        match source, destination:
            case Registry(), Store():
                await self._pull(scope, source, destination, tracker)
            case _:
                raise Unimplemented(f"unable to transfer from {source} to {destination}")

    async def _pull(self, scope: Scope, source: Registry, store: Store, tracker: Tracker) -> None:
        parsed = reference.parse(source.reference)
        rules = names_of(store)
        unpacks = [self._unpack(request) for request in store.unpacks]
        access = source.access
        if not access.roots:
            access = type(access)(
                self._defaults.roots, access.scheme, access.headers, access.keeper
            )
        tracker.say(f"Resolving from {source}")
        async with connected(parsed, access, self._defaults.patience) as repository:
            target = await repository.resolve()
            tracker.say(f"Pulling from {source}")
            tracker.say("fetching image content", source.reference, target)
            wanted = Wanted(Selection(store.platforms, store.limit), unpacks, store.all_metadata)
            await self._puller.pull(scope, repository, target, wanted, tracker)
        await self._save(scope, store, target, rules.for_target(target), tracker)
        tracker.say(f"Completed pull from {source}")

    async def _save(
        self,
        scope: Scope,
        store: Store,
        target: Descriptor,
        names: Mapping[str, Mapping[str, str]],
        tracker: Tracker,
    ) -> None:
        if not names:
            raise NotFound("no image name found")
        for name, labels in names.items():
            await named(self._images, scope, name, target, labels)
            tracker.say("saved", name, target)

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
        label = {_EXPIRE: until.isoformat(timespec="seconds").replace("+00:00", "Z")}
        lease = await self._leases.create(scope.namespace, Lease("", labels=label))
        try:
            yield Scope(scope.namespace, lease.id)
        finally:
            await self._owner.shielded(self._leases.delete(scope.namespace, lease.id), "lease")
