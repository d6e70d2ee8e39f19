"""The mount manager; implements contracts.mounts.MountManager and contracts.collectible.

An activation is a row, then a folder ``t/<id>`` in the state folder with a mount point for each of
its mounts, then a row that says so. What a crash leaves in between is taken away at the next
start: rows that are not whole, folders without a row. Rows of an earlier boot of the machine have
no mounts any more. All activations are held in memory as well: reads wait for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts import filters as filter_language
from supervisord.contracts.collectible import Collectible
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from supervisord.contracts.identifiers import check_labels
from supervisord.contracts.mounts import (
    ActivateOptions,
    Activation,
    ActiveMount,
    MountHandler,
)
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.sqlite.database import Database

from . import rows
from .handlers import KernelHandler
from .plan import Plan, plan
from .prepare import prepared
from .rows import Row

log = logging.getLogger(__name__)

KIND = "mount"

_CLOSE_GRACE = 10.0
_MOST_MOUNTS = 512
_MOST_NAME = 1024
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DEFAULTS = ActivateOptions()
_KERNEL = KernelHandler()


class _Made(NamedTuple):
    active: list[ActiveMount]
    system: list[Mount]


class Manager:
    """Make it with ``open``."""

    def __init__(
        self,
        database: Database,
        targets: Path,
        handlers: Mapping[str, MountHandler],
        roots: Sequence[str],
        boot: str,
    ) -> None:
        self._database = database
        self._targets = targets
        self._handlers = dict(handlers)
        self._roots = [str(targets), *roots]
        self._boot = boot
        self._rows: dict[tuple[str, str], Row] = {}
        self._held: set[tuple[str, str]] = set()
        self._locks = KeyedLock()
        self._owner = TaskOwner("mounts")
        self._closed = False

    @classmethod
    async def open(
        cls, state: Path, handlers: Mapping[str, MountHandler], roots: Sequence[str]
    ) -> Manager:
        """Opens the manager of a state folder, made if it is not there, and takes away what an
        earlier one left half-made. ``handlers`` are by their types; directories and images are
        made below ``roots`` only."""
        targets = state / "t"
        await asyncio.to_thread(targets.mkdir, mode=0o700, parents=True, exist_ok=True)
        real = await asyncio.to_thread(targets.resolve)
        boot = (await asyncio.to_thread(_BOOT.read_text)).strip()
        database = await Database.open(state / "mounts.sqlite", rows.MIGRATIONS)
        opened = cls(database, real, handlers, roots, boot)
        try:
            await opened._recover()
        except BaseException:
            await database.close()
            raise
        return opened

    async def close(self) -> None:
        """Lets go; activations stay."""
        if not self._closed:
            self._closed = True
            await self._owner.close(_CLOSE_GRACE)
            await self._database.close()

    async def _recover(self) -> None:
        for row in self._database.read(rows.everything):
            self._rows[row.key] = row
            if row.boot != self._boot:
                await self._forget(row)
            elif not row.whole:
                await self._end(row)
        known = {str(row.id) for row in self._rows.values()}
        for name in await asyncio.to_thread(os.listdir, self._targets):
            if name not in known:
                try:
                    await self._take_away(name, ())
                except (Error, OSError) as error:
                    log.warning("mounts of no activation stay: %s: %s", name, error)

    # Reading -------------------------------------------------------------------------------

    def wanted(self, mounts: Sequence[Mount], options: ActivateOptions = _DEFAULTS) -> bool:
        """See the contract."""
        return self._plan(mounts, options) is not None

    def info(self, namespace: str, name: str) -> Activation:
        """See the contract."""
        row = self._rows.get((namespace, name))
        if row is None or not row.whole:
            raise NotFound(f"mount {name!r} not found")
        return row.activation

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Activation]:
        """See the contract."""
        matches = filter_language.parse(filters)
        mine = sorted(row.key for row in self._rows.values() if row.namespace == namespace)
        found = [self._rows[key].activation for key in mine if self._rows[key].whole]
        return [each for each in found if matches.match(partial(_field, each))]

    # Activating ----------------------------------------------------------------------------

    async def activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        options: ActivateOptions = _DEFAULTS,
    ) -> Activation:
        """See the contract."""
        if not name or len(name) > _MOST_NAME:
            raise InvalidArgument(f"name: must have 1 to {_MOST_NAME} characters")
        if len(mounts) > _MOST_MOUNTS:
            raise InvalidArgument(f"mounts: more than {_MOST_MOUNTS}")
        check_labels(options.labels, "labels")
        planned = self._plan(mounts, options)
        if planned is None:
            raise Unimplemented("mounts: all of them are system mounts: not implemented")
        self._check_open()
        work = self._activate(scope, name, mounts, options, planned)
        return await self._owner.shielded(work, f"activate {name}")

    def _plan(self, mounts: Sequence[Mount], options: ActivateOptions) -> Plan | None:
        return plan(mounts, self._handlers, allowed=options.allowed, temporary=options.temporary)

    async def _activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        options: ActivateOptions,
        planned: Plan,
    ) -> Activation:
        async with self._locks.hold((scope.namespace, name)):
            await self._make_way(scope.namespace, name)
            row = await self._begin(scope, name, options.labels, planned)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._end, row)
                active, system = await self._make(row, mounts, planned)
                if options.temporary and active:
                    system.append(Mount("bind", active[-1].mount_point, ("rbind",)))
                await self._database.write(
                    partial(rows.complete, id=row.id, active=active, system=system)
                )
                undo.pop_all()
            whole = replace(row, whole=True, active=active, system=system)
            self._rows[row.key] = whole
            return whole.activation

    async def _make_way(self, namespace: str, name: str) -> None:
        """Raises AlreadyExists; what is half-made, and could not be taken away before, goes."""
        row = self._rows.get((namespace, name))
        if row is not None and row.whole:
            raise AlreadyExists(f"mount {name!r}: already exists")
        if row is not None and not await self._end(row):
            raise Unavailable(f"mount {name!r}: what was left of it cannot be unmounted yet")

    async def _begin(
        self, scope: Scope, name: str, labels: Mapping[str, str], planned: Plan
    ) -> Row:
        handlers = [step.handler for step in planned.steps[: planned.made]]
        values = (scope.namespace, name, scope.lease, labels, self._boot, handlers)
        id = await self._database.write(lambda connection: rows.insert(connection, *values))
        row = Row(id, scope.namespace, name, scope.lease, self._boot, handlers, labels=labels)
        self._rows[row.key] = row
        return row

    async def _make(self, row: Row, mounts: Sequence[Mount], planned: Plan) -> _Made:
        made = active, system = _Made([], [])
        folder = self._targets / str(row.id)
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700)
            for at, (mount, step) in enumerate(zip(mounts, planned.steps, strict=True)):
                ready = mount
                if step.prefixes and at <= planned.made:
                    for prefix in step.prefixes:
                        ready = await prepared(prefix, ready, active, self._roots)
                    ready = replace(ready, type=step.type)
                if at < planned.made:
                    handler = self._handlers.get(step.handler, _KERNEL)
                    active.append(await handler.mount(ready, f"{folder}/{at}", active))
                else:
                    system.append(ready)
        except OSError as error:
            raise Unknown(f"mount {row.name!r}: {error}") from error
        return made

    @asynccontextmanager
    async def for_a_while(
        self, scope: Scope, mounts: Sequence[Mount]
    ) -> AsyncIterator[Sequence[Mount]]:
        """See the contract."""
        if not self.wanted(mounts):
            yield mounts
            return
        name = f"for-a-while-{secrets.token_hex(8)}"
        key = (scope.namespace, name)
        self._held.add(key)
        try:
            activation = await self.activate(scope, name, mounts)
            try:
                yield activation.system
            finally:
                await self.deactivate(scope.namespace, name)
        finally:
            self._held.discard(key)

    # Deactivating --------------------------------------------------------------------------

    def deactivate(
        self, namespace: str, name: str, *, only: Activation | None = None
    ) -> Coroutine[None, None, None]:
        """See the contract. Nobody sees the activation from the call on, before it is awaited."""
        row = self._rows.get((namespace, name))
        if row is not None and row.whole and (only is None or row.id == only.serial):
            self._rows[row.key] = replace(row, whole=False)
        return self._deactivated(namespace, name, only)

    async def _deactivated(self, namespace: str, name: str, only: Activation | None) -> None:
        self._check_open()
        await self._owner.shielded(self._deactivate(namespace, name, only), f"deactivate {name}")

    async def _deactivate(self, namespace: str, name: str, only: Activation | None) -> None:
        async with self._locks.hold((namespace, name)):
            row = self._rows.get((namespace, name))
            if only is not None and (row is None or row.id != only.serial):
                return
            if row is None:
                raise NotFound(f"mount {name!r} not found")
            await self._database.write(partial(rows.ending, id=row.id), freeing=True)
            self._rows[row.key] = replace(row, whole=False)
            if not await self._end(row):
                raise Unavailable(f"mount {name!r}: it cannot be unmounted yet")

    async def _end(self, row: Row) -> bool:
        """Takes away all that was made of an activation, and its row; whether that went well."""
        try:
            await self._take_away(str(row.id), row.handlers)
        except (Error, OSError) as error:
            log.warning("mount %s is not unmounted: %s", row.name, error)
            return False
        await self._forget(row)
        return True

    async def _forget(self, row: Row) -> None:
        await self._database.write(partial(rows.delete, id=row.id), freeing=True)
        if row.key in self._rows and self._rows[row.key].id == row.id:
            del self._rows[row.key]

    async def _take_away(self, id: str, handlers: Sequence[str]) -> None:
        """The last mount first; by its looks where nobody knows its handler."""
        folder = self._targets / id
        try:
            names = await asyncio.to_thread(os.listdir, folder)
        except FileNotFoundError:
            return
        for name in sorted(names, key=_number, reverse=True):
            target, at = f"{folder}/{name}", _number(name)
            type = handlers[at] if 0 <= at < len(handlers) else ""
            if not type and await asyncio.to_thread(os.path.islink, target):
                type = "loop"
            await self._handlers.get(type, _KERNEL).unmount(target)
        await asyncio.to_thread(folder.rmdir)

    # Labels --------------------------------------------------------------------------------

    async def update(
        self, namespace: str, activation: Activation, fieldpaths: Sequence[str]
    ) -> Activation:
        """See the contract."""
        self._check_open()
        async with self._locks.hold((namespace, activation.name)):
            before = self.info(namespace, activation.name)
            labels = _changed(before.labels, activation, fieldpaths)
            check_labels(labels, "info.labels")
            row = self._rows[(namespace, activation.name)]
            await self._database.write(partial(rows.relabel, id=row.id, labels=labels))
            changed = replace(row, labels=labels)
            self._rows[row.key] = changed
            return changed.activation

    # Garbage collection --------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """See contracts.collectible."""
        return KIND

    def resources(self) -> Sequence[Collectible]:
        """See contracts.collectible. What is being made, or used by the daemon itself, stays."""
        return [
            Collectible(
                row.namespace,
                row.name,
                row.labels,
                row.lease,
                active=self._locks.held(row.key) or row.key in self._held,
            )
            for row in self._rows.values()
        ]

    async def collect(self, resource: Collectible) -> None:
        """See contracts.collectible."""
        if resource in self.resources() and not self._closed:
            await self.deactivate(resource.namespace, resource.key)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("mounts: the daemon is stopping")


def _changed(
    labels: Mapping[str, str], wanted: Activation, fieldpaths: Sequence[str]
) -> dict[str, str]:
    changed = dict(labels)
    for path in fieldpaths or ("labels",):
        key = path.removeprefix("labels.")
        if path == "labels":
            changed = dict(wanted.labels)
        elif key != path:
            changed[key] = wanted.labels.get(key, "")
        else:
            raise InvalidArgument(f"cannot update field {path!r} on mount {wanted.name!r}")
    return {key: value for key, value in changed.items() if value}


def _field(activation: Activation, path: Sequence[str]) -> tuple[str, bool]:
    """What filters see of an activation: ``name``, ``labels.KEY``."""
    match path[0] if path else "":
        case "name":
            return activation.name, True
        case "labels":
            return filter_language.lookup(path[1:], activation.labels)
    return "", False


def _number(name: str) -> int:
    return int(name) if name.isascii() and name.isdecimal() else -1
