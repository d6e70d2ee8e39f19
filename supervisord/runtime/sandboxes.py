"""The sandbox controller "shim": every sandbox is a shim that serves the sandbox API.

Implements contracts.sandboxes.SandboxController. Creating, starting and removing hold the lock of
the sandbox's name; everything else goes straight to the shim. Each instance is watched until it
ends (``sandbox_watch``). Its containers are tasks like others, which share its shim (``groups``);
those of a shim that died are recovered as tasks are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from protos.containerd.events import events_pb2
from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from supervisord.contracts.events import Publisher
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.sandboxes import (
    NOT_READY,
    CreateSandbox,
    Platform,
    Sandbox,
    SandboxExit,
    SandboxStatus,
    SandboxStore,
    StartedSandbox,
)
from supervisord.contracts.tasks import Metric, TaskManager
from supervisord.contracts.workers import ShimSpawner

from .bundle import Bundle, ShimRecord
from .groups import Groups
from .launch import Settings
from .oci import OciRuntimes
from .sandbox import Instance
from .sandbox_bundle import read_exit
from .sandbox_creation import SandboxCreation
from .sandbox_shim import SandboxShim, endpoint
from .sandbox_watch import SandboxWatch

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_TASK_SECONDS = 10.0
_SIGKILL = 9
_GROUPING_VERSION = 3
"""The version of the task service with which shims began to know sandboxes."""

SANDBOXER = "shim"
UNCLAIMED_SECONDS = 30.0
"""How long a sandbox whose creator went away is kept for a retry."""


class SandboxTasks(TaskManager, Protocol):
    """The tasks, and which of them are in a sandbox."""

    def in_sandbox(self, namespace: str, sandbox: str) -> Sequence[str]: ...


@dataclass(slots=True)
class _Order:
    """A creation under way, and how many wait for it."""

    request: CreateSandbox
    waiters: int = 0
    making: asyncio.Task[None] = field(init=False)


class ShimSandboxes:
    """The controller. ``open`` it before use, ``close`` it at the end: sandboxes live on."""

    def __init__(
        self,
        settings: Settings,
        records: SandboxStore,
        tasks: SandboxTasks,
        groups: Groups,
        publisher: Publisher,
        spawner: ShimSpawner,
        runtimes: OciRuntimes,
    ) -> None:
        """``settings.state`` is a folder of the controller's own."""
        self._settings = settings
        self._records = records
        self._tasks = tasks
        self._groups = groups
        self._instances: dict[tuple[str, str], Instance] = {}
        self._orders: dict[tuple[str, str], _Order] = {}
        self._locks = KeyedLock()
        self._owner = TaskOwner("sandboxes")
        self._watching = TaskOwner("sandbox shims")
        self._creation = SandboxCreation(settings, spawner, runtimes, self._owner, self._watching)
        self._watch = SandboxWatch(self._creation, publisher, self._watching)

    def __len__(self) -> int:
        return len(self._instances)

    async def open(self) -> None:
        """Finds the sandboxes of an earlier run; returns before their shims have answered. What
        was half-made is being removed under the lock of its name when this returns."""
        store = self._creation.store
        await asyncio.to_thread(store.prepare)
        await asyncio.to_thread(self._settings.prepare)
        for error in await asyncio.to_thread(store.empty_all):
            log.warning("trash: %s", error)
        for bundle in await asyncio.to_thread(lambda: list(store.all())):
            record = bundle.read_record()
            if record is None or not record.init_pid:
                locked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                ending = self._end_half_made(bundle, record, locked)
                self._owner.spawn(ending, f"half-made {bundle.id}")
                await locked
                continue
            one = Instance(bundle, record)
            exit = read_exit(bundle)
            if exit is not None:
                one.end(exit)
            self._take(one)
            self._creation.read_log(one)

    async def _end_half_made(
        self, bundle: Bundle, record: ShimRecord | None, locked: asyncio.Future[None]
    ) -> None:
        async with self._locks.hold((bundle.namespace, bundle.id)):
            locked.set_result(None)
            log.info("removing half-made sandbox %s", bundle.id)
            await self._creation.end_half_made(bundle, record)

    async def close(self) -> None:
        """Lets go of all shims."""
        await self._watching.close()
        await self._owner.close(grace=_CLOSE_SECONDS)
        for one in self._instances.values():
            one.close()

    # Create and shut down -----------------------------------------------------------------

    async def create(self, namespace: str, request: CreateSandbox) -> None:
        """See the contract. A retry of a creation that is still running joins it."""
        check_identifier(request.sandbox.id, "sandbox_id")
        key = (namespace, request.sandbox.id)
        order = self._orders.get(key)
        if order is None or order.request != request:
            order = self._orders[key] = _Order(request)
            order.making = self._owner.spawn(self._create(key, order), f"create {key[1]}")
        order.waiters += 1
        try:
            await asyncio.shield(order.making)
        finally:
            order.waiters -= 1

    async def _create(self, key: tuple[str, str], order: _Order) -> None:
        try:
            async with self._locks.hold(key):
                existing = self._instances.get(key)
                if existing is not None:
                    if existing.unclaimed == order.request:
                        existing.unclaimed = None
                        return
                    lives = existing.exit is None or existing.is_alive()
                    if lives and existing.unclaimed is None:
                        raise AlreadyExists(f"sandbox {key[1]} already running: already exists")
                    await self._drop(existing)
                one = await self._creation.create(key[0], order.request)
                self._take(one)
            self._watch.publish(one, "create", events_pb2.SandboxCreate(sandbox_id=one.id))
            if not order.waiters:  # all went away: a retry may have it; else it is removed
                one.unclaimed = order.request
                self._watching.spawn(self._remove_unclaimed(one), f"unclaimed {one.id}")
        finally:
            if self._orders.get(key) is order:
                del self._orders[key]

    async def _remove_unclaimed(self, one: Instance) -> None:
        while one.unclaimed is not None and not one.is_gone:
            await asyncio.sleep(UNCLAIMED_SECONDS)
            try:
                if one.exit is None:
                    await one.reach()  # else it would be ended by force
                ending = self._remove(one, only_unclaimed=True)
                await self._owner.shielded(ending, f"remove {one.id}")
            except Error as error:
                log.warning("unclaimed sandbox %s: %s", one.id, error)

    async def start(self, namespace: str, id: str) -> StartedSandbox:
        """See the contract."""
        return await self._owner.shielded(self._start(self._find(namespace, id)), f"start {id}")

    async def _start(self, one: Instance) -> StartedSandbox:
        async with self._locks.hold(one.key):
            self._check_lives(one)
            try:
                started = await (await one.reach()).start()
            except FailedPrecondition:  # it has been started
                raise
            except Error:
                await self._drop(one)
                raise
        self._watch.publish(one, "start", events_pb2.SandboxStart(sandbox_id=one.id))
        return started

    async def shutdown(self, namespace: str, id: str) -> None:
        """See the contract."""
        one = self._find(namespace, id)
        await self._owner.shielded(self._remove(one), f"shut down {id}")

    async def _remove(self, one: Instance, *, only_unclaimed: bool = False) -> None:
        async with self._locks.hold(one.key):
            if one.is_gone:
                raise NotFound(f"sandbox {one.id}: not found")
            if only_unclaimed:
                if one.unclaimed is None:
                    return
                log.info("sandbox %s is removed: its creator went away", one.id)
            await self._end_tasks(one, delete=True)
            await self._drop(one)

    async def _drop(self, one: Instance) -> None:
        """Ends the shim, if it lives, and forgets the instance. The caller holds its lock."""
        await self._creation.end(one)
        if one.exit is None:
            self._watch.ended(one, SandboxExit(0, time.time_ns()))
        one.is_gone = True
        one.close()
        self._groups.leave(one.group, one.record)
        if self._instances.get(one.key) is one:
            del self._instances[one.key]

    async def _end_tasks(self, one: Instance, *, delete: bool) -> None:
        """Kills what runs in the sandbox, all at once; what cannot be killed or deleted in time is
        told in the log."""
        found = self._tasks.in_sandbox(*one.key)
        await asyncio.gather(*(self._end_task(one, task, delete=delete) for task in found))

    async def _end_task(self, one: Instance, task: str, *, delete: bool) -> None:
        namespace, id = one.key
        try:
            async with asyncio.timeout(_TASK_SECONDS):
                with suppress(NotFound):
                    await self._tasks.kill(namespace, task, _SIGKILL, all=True)
                await self._tasks.wait(namespace, task)
                if delete:
                    await self._tasks.delete(namespace, task)
        except NotFound:
            return
        except (Error, TimeoutError) as error:
            log.warning("task %s of sandbox %s: %s", task, id, error)

    # Use ----------------------------------------------------------------------------------

    async def platform(self, namespace: str, id: str) -> Platform:
        """See the contract."""
        return await (await self._shim(namespace, id)).platform()

    async def stop(self, namespace: str, id: str, seconds: float = 0.0) -> None:
        """See the contract."""
        try:
            one = self._find(namespace, id)
        except NotFound:
            return
        if one.exit is None:
            try:
                await (await one.reach()).stop(seconds)
                return
            except (NotFound, Unavailable) as error:
                log.debug("sandbox %s: %s", id, error)
                if one.is_alive() and isinstance(error, Unavailable):
                    raise
        await self._end_tasks(one, delete=False)  # a dead shim's tasks may have others by now

    async def wait(self, namespace: str, id: str) -> SandboxExit:
        """See the contract."""
        return await self._find(namespace, id).wait()

    async def status(self, namespace: str, id: str, *, verbose: bool = False) -> SandboxStatus:
        """See the contract."""
        try:
            one = self._find(namespace, id)
        except NotFound:
            return SandboxStatus(id, exited_at=time.time_ns())
        try:
            return await (await one.reach()).status(verbose=verbose)
        except (NotFound, Unavailable):
            if one.is_alive():
                raise
        exit = one.exit or await one.wait()  # the watch is about to see it
        record = one.record
        return SandboxStatus(
            id,
            record.pid,
            NOT_READY,
            exited_at=exit.exited_at,
            address=endpoint(record),
            version=record.version,
        )

    async def metrics(self, namespace: str, id: str) -> Metric:
        """See the contract."""
        return await (await self._shim(namespace, id)).metrics()

    async def update(
        self, namespace: str, id: str, sandbox: Sandbox, fieldpaths: Sequence[str]
    ) -> None:
        """See the contract. The sandbox API has no call by which a shim could be told."""
        self._find(namespace, id)

    def admit(self, namespace: str, id: str) -> bool:
        """Whether a container of this sandbox shall join the sandbox's shim; no for a sandbox of
        which nothing is known here, but for its name.

        Raises FailedPrecondition when it has ended, NotFound when only its record is there."""
        one = self._instances.get((namespace, id))
        if one is not None:
            self._check_lives(one)
            return one.record.version >= _GROUPING_VERSION
        try:
            sandbox = self._records.get(namespace, id)
        except NotFound:
            return False
        if sandbox.sandboxer != SANDBOXER:
            return False
        raise NotFound(f"can't find shim for sandbox {id}: not found")

    def _take(self, one: Instance) -> None:
        """Lists an instance, and watches it until it has ended."""
        self._instances[one.key] = one
        if one.exit is None:
            self._groups.join(one.group, one.group, one.record)
            self._watch.begin(one)

    # Finding ------------------------------------------------------------------------------

    def _find(self, namespace: str, id: str) -> Instance:
        one = self._instances.get((namespace, id))
        if one is None:
            raise NotFound(f"sandbox {id}: not found")
        one.unclaimed = None
        return one

    async def _shim(self, namespace: str, id: str) -> SandboxShim:
        return await self._find(namespace, id).reach()

    @staticmethod
    def _check_lives(one: Instance) -> None:
        if one.is_gone or one.exit is not None:
            raise FailedPrecondition(f"sandbox {one.id} has ended")
