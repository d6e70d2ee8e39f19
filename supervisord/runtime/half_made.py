"""Removes tasks whose creation did not end: bundles that no task stands for, and all they started.

``recovery`` finds them at boot, ``creation`` leaves one where its undo fails. A bundle is what
knows of the processes in it, so it stays until they are gone: removal is tried again for as long as
it takes, and nobody gets the name meanwhile. This never touches a task that is whole.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import DeadlineExceeded, Error, NotFound, Unavailable

from . import bootstrap
from .bundle import Bundle, BundleStore, ShimRecord
from .burial import Burial
from .foreign import introduce
from .groups import Groups, Key
from .launch import connect
from .shim import CONNECT_SECONDS, Shim

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 60.0
_TRIES = 20


class HalfMade:
    """The half-made tasks of one daemon."""

    def __init__(
        self,
        store: BundleStore,
        burial: Burial,
        groups: Groups,
        locks: KeyedLock,
        owner: TaskOwner,
        watching: TaskOwner,
        shim_seconds: float,
    ) -> None:
        """``shim_seconds`` is how long a shim may take to answer."""
        self._store = store
        self._burial = burial
        self._groups = groups
        self._locks = locks
        self._owner = owner
        self._watching = watching
        self._shim_seconds = shim_seconds
        self._stuck: dict[Key, Error] = {}

    def check(self, key: Key) -> None:
        """Raises Unavailable while something of an earlier task of this name is there."""
        error = self._stuck.get(key)
        if error is not None:
            raise Unavailable(f"task {key[1]}: an earlier one is not removed yet: {error.message}")

    def keeps(self, bundle: Bundle) -> bool:
        """Whether the bundle is needed to end what is in it."""
        return (bundle.namespace, bundle.id) in self._stuck

    async def remove(self, bundle: Bundle, record: ShimRecord | None) -> None:
        """Begins to remove one, and returns once it holds the lock of the name."""
        locked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner.spawn(self._remove(bundle, record, locked), f"half-made {bundle.id}")
        await locked

    async def end(self, bundle: Bundle, record: ShimRecord) -> bool:
        """Ends what a dead shim has left; where that cannot be done the bundle is kept, and it is
        tried again. The caller holds the lock of the name, and discards the bundle if this is
        True."""
        key = (bundle.namespace, bundle.id)
        try:
            await self._burial.bury(bundle, record)
        except Error as error:
            log.error("half-made task %s is not removed yet: %s", bundle.id, error)
            if key not in self._stuck:
                with suppress(RuntimeError):  # we are closing: the next daemon finds it
                    self._watching.spawn(self._again(bundle, record), f"half-made {bundle.id}")
            self._stuck[key] = error
            return False
        self._stuck.pop(key, None)
        return True

    async def _again(self, bundle: Bundle, record: ShimRecord) -> None:
        pause = _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            async with self._locks.hold((bundle.namespace, bundle.id)):
                if await self.end(bundle, record):
                    log.info("half-made task %s is removed", bundle.id)
                    return await self._burial.empty(self._store.discard(bundle))

    async def _remove(
        self, bundle: Bundle, record: ShimRecord | None, locked: asyncio.Future[None]
    ) -> None:
        async with self._locks.hold((bundle.namespace, bundle.id)):
            locked.set_result(None)
            log.info("removing half-made task %s", bundle.id)
            if record is not None:
                if record.binary and not record.address:
                    found = await asyncio.to_thread(bootstrap.left_address, bundle.path)
                    record = replace(record, address=found)
                last = self._groups.leave((bundle.namespace, bundle.id), record)
                await self._end_shim(bundle, record, last)
                if not await self.end(bundle, record):
                    return
            await self._burial.empty(self._store.discard(bundle))

    async def _end_shim(self, bundle: Bundle, record: ShimRecord, last: bool) -> None:
        """A shim that is still creating refuses to end until it has created: asks again."""
        shim: Shim | None = None
        try:
            client = await connect(record.address, CONNECT_SECONDS)
            version = record.version
            if record.binary:
                version, _ = await introduce(client, bundle, version)
            shim = Shim(client, bundle.namespace, bundle.id, version, self._shim_seconds)
            for _ in range(_TRIES):
                try:
                    await shim.delete()
                except (NotFound, DeadlineExceeded) as error:
                    log.debug("half-made task %s: %s", bundle.id, error)
                if not last:
                    break
                await shim.shutdown()
                try:
                    async with asyncio.timeout(0.5):
                        await shim.closed
                    break
                except TimeoutError:
                    continue
        except Error as error:
            log.debug("half-made task %s: %s", bundle.id, error)
        alive = shim if shim and not shim.is_lost else None
        await self._burial.end_shim(alive, record, last=last)
