"""Makes a task: bundle, shim, container; what a failed creation had made is undone.

The order on disk makes a crash at any point harmless: the bundle with the shim's address is there
before the shim, and the record with init's pid after everything else. A bundle without that pid
is half-made and is removed by ``recovery``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.containers import Container
from supervisord.contracts.errors import DeadlineExceeded, Error, Unavailable, Unknown
from supervisord.contracts.tasks import CreateTask, Process, Status
from supervisord.contracts.typed import TypedValue
from supervisord.linux import process
from supervisord.ttrpc.client import Client

from . import names
from .bundle import Bundle, BundleStore, ShimRecord
from .burial import Burial
from .checkpoint import Checkpoints
from .foreign import ForeignLauncher
from .groups import SANDBOX, Groups, Key, SharedShim, group_of
from .half_made import HalfMade
from .launch import Launcher, Settings, connect, listen
from .oci import OciRuntimes
from .orders import Order
from .rootfs import Rootfs
from .shim import CONNECT_SECONDS, Shim
from .sight import Sight
from .task import Task

log = logging.getLogger(__name__)

_DELETE_SECONDS = 5.0
_SPARE_SECONDS = 0.004
"""After the start of a create: the shim has got over its beginning, and the runtime is at work,
which leaves a processor idle for most of its time."""
_FOREIGN_SECONDS = 300.0
"""How long a foreign shim may take to create: nobody may be left who would cancel it."""


class Sandboxes(Protocol):
    """Who knows which sandboxes take containers."""

    def admit(self, namespace: str, id: str) -> bool:
        """Whether a container shall join the shim of its sandbox, found in ``groups``; no for a
        sandbox of which nothing is known. Raises FailedPrecondition, NotFound."""
        ...


class Creation:
    """Makes tasks for the manager, which holds the lock of the task's name meanwhile."""

    def __init__(
        self,
        settings: Settings,
        store: BundleStore,
        launcher: Launcher,
        foreign: ForeignLauncher,
        burial: Burial,
        runtimes: OciRuntimes,
        checkpoints: Checkpoints,
        groups: Groups,
        half_made: HalfMade,
        rootfs: Rootfs,
        owner: TaskOwner,
        watching: TaskOwner,
    ) -> None:
        self._rootfs = rootfs
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._foreign = foreign
        self._burial = burial
        self._runtimes = runtimes
        self._checkpoints = checkpoints
        self._groups = groups
        self._half_made = half_made
        self._owner = owner
        self._watching = watching
        self.sandboxes: Sandboxes | None = None
        """Asked for the shims of sandboxes, where there is a controller of them."""

    async def create(self, order: Order) -> Task:
        """The task, created and connected; unclaimed if nobody waits for it any more.

        Raises InvalidArgument, NotFound (runtime), Unknown (the runtime's words), Unavailable,
        DeadlineExceeded (a foreign shim), ResourceExhausted; nothing is left then."""
        namespace, container, request = order.namespace, order.container, order.request
        runtime = request.runtime_path or container.runtime.name
        sandbox = self._sandbox_of(namespace, container)
        binary = "" if sandbox else names.resolve(runtime, named=self._settings.shims)
        options = request.options or container.runtime.options
        async with AsyncExitStack() as undo:
            request = await self._rootfs.ready(namespace, container.id, request, binary, undo)
            if binary:
                shim, record, init_pid = await self._foreign_shim(
                    binary, namespace, container, request, options, undo
                )
            else:
                shim, record, init_pid = await self._our_shim(
                    namespace, container, request, options, sandbox, undo
                )
            restored = not init_pid and self._checkpoints.starts_at_once(request)
            if restored:
                init_pid = await shim.start()
            started = process.start_time(init_pid) or 0
            record = replace(
                record,
                init_pid=init_pid,
                init_start=started,
                restores=not init_pid,
                order=order.digest,
            )
            bundle = self._store.bundle(namespace, container.id)
            unclaimed = order.is_abandoned
            if unclaimed:
                bundle.mark_unclaimed()
            bundle.write_record(record)
            undo.pop_all()
        task = Task(bundle, record, self._watching)
        task.is_unclaimed = unclaimed
        task.attach(shim)
        if started and not binary:  # one that has ended already was told before we could listen
            stdio = request.stdio
            status = Status.RUNNING if restored else Status.CREATED
            task.sight = Sight(Process(container.id, "", init_pid, status, stdio))
        return task

    def _sandbox_of(self, namespace: str, container: Container) -> str:
        """The group of the sandbox that holds the container, whatever its runtime; "" for none.
        Raises FailedPrecondition, NotFound."""
        known = self.sandboxes if container.sandbox else None
        admitted = known is not None and known.admit(namespace, container.sandbox)
        return SANDBOX + container.sandbox if admitted else ""

    async def _our_shim(
        self,
        namespace: str,
        container: Container,
        request: CreateTask,
        options: TypedValue,
        sandbox: str,
        undo: AsyncExitStack,
    ) -> tuple[Shim, ShimRecord, int]:
        runtime = await self._runtimes.default()
        group = sandbox or group_of(container)
        key, name = (namespace, container.id), (namespace, group or container.id)
        async with self._groups.lock.hold(name):
            shared = await self._join(name, key)
            if shared is None and sandbox:
                raise Unavailable(f"sandbox {container.sandbox}: its shim does not answer")
            if shared is not None:
                undo.push_async_callback(self._leave, key, *shared)
            record = shared[0].record if shared else ShimRecord(self._settings.new_address())
            record = replace(record, group=group)
            bundle = self._lay_out(namespace, container, record, undo)
            checkpoint = await self._checkpoints.lay_out(namespace, request, options, bundle)
            if shared is None:
                listener = listen(record.address)
                undo.callback(listener.close)
                launched = self._launcher.launch(bundle, record.address, listener, runtime)
                client, forking = await launched
                shim = self._shim(client, (namespace, container.id), record.version)
                shared = self._groups.join(name, key, record, forking), shim
            undo.push_async_callback(self._end_forked, bundle, *shared)
        whose, shim = shared
        asyncio.get_running_loop().call_later(_SPARE_SECONDS, self._launcher.replenish)
        init_pid = await self._create(shim, bundle, request, options, checkpoint, whose.forking)
        await _forked(whose)
        return shim, replace(whose.record, group=group), init_pid

    async def _join(self, name: Key, key: Key) -> tuple[SharedShim, Shim] | None:
        """The live shim of a group, if it has one, with a connection of the new member's own."""
        shared = self._groups.find(name)
        if shared is None:
            return None
        self._groups.join(name, key, shared.record)  # at once, so that nobody ends it meanwhile
        try:
            client = await connect(shared.record.address, CONNECT_SECONDS)
        except (Unavailable, DeadlineExceeded) as error:
            log.info("group %s gets another shim: %s", name[1], error)
            self._groups.leave(key, shared.record)
            self._groups.forget(shared)
            return None
        return shared, self._shim(client, key, shared.record.version)

    async def _leave(self, key: Key, shared: SharedShim, shim: Shim) -> None:
        """For a member whose bundle could not be made."""
        if key in shared.members:
            last = self._groups.leave(key, shared.record)
            await self._burial.end_shim(shim, shared.record, last=last)

    async def _foreign_shim(
        self,
        binary: str,
        namespace: str,
        container: Container,
        request: CreateTask,
        options: TypedValue,
        undo: AsyncExitStack,
    ) -> tuple[Shim, ShimRecord, int]:
        bundle = self._lay_out(namespace, container, ShimRecord("", binary=binary), undo)
        checkpoint = await self._checkpoints.lay_out(namespace, request, options, bundle)
        client, record = await self._foreign.launch(binary, bundle, options, undo)
        shim = self._shim(client, (namespace, container.id), record.version)
        self._groups.join(("", record.address), (namespace, container.id), record)
        undo.push_async_callback(self._end, bundle, shim, record)
        pid = await self._create(
            shim, bundle, request, options, checkpoint, None, seconds=_FOREIGN_SECONDS
        )
        return shim, record, pid

    def _shim(self, client: Client, key: Key, version: int) -> Shim:
        return Shim(client, *key, version, self._settings.shim_seconds)

    def _lay_out(
        self, namespace: str, container: Container, record: ShimRecord, undo: AsyncExitStack
    ) -> Bundle:
        try:
            bundle = self._store.create(namespace, container.id, container.spec.value)
        finally:
            for leftover in self._store.leftovers:
                self._owner.spawn(self._burial.empty(leftover), f"leftover of {container.id}")
            self._store.leftovers.clear()
        undo.push_async_callback(self._remove, bundle, record.address)
        bundle.write_record(record)
        return bundle

    async def _create(
        self,
        shim: Shim,
        bundle: Bundle,
        request: CreateTask,
        options: TypedValue,
        checkpoint: str,
        forking: asyncio.Task[int] | None,
        seconds: float | None = None,
    ) -> int:
        try:
            return await shim.create(
                bundle.path, request.rootfs, request.stdio, options, checkpoint, seconds
            )
        except Unavailable as error:
            if not shim.is_lost:
                raise
            if forking is not None:
                await forking  # its failure is the reason, if it failed
            words = bundle.log_tail()
            raise Unknown(f"the shim ended while it created the task: {words or error}") from error

    # Undo: none of these fails, so that none hides why the creation did ------------------

    async def _end_forked(self, bundle: Bundle, shared: SharedShim, shim: Shim) -> None:
        try:
            await _forked(shared)
        except Error:
            shim.close()  # there never was a shim
            self._groups.leave((bundle.namespace, bundle.id), shared.record)
            return
        await self._end(bundle, shim, shared.record)

    async def _end(self, bundle: Bundle, shim: Shim, record: ShimRecord) -> None:
        lost = shim.is_lost
        if not lost:
            try:
                async with asyncio.timeout(_DELETE_SECONDS):
                    await shim.delete()
            except (Error, TimeoutError) as error:
                log.debug("container %s: %s", bundle.id, error)  # as a rule, there is none
        last = self._groups.leave((bundle.namespace, bundle.id), record)
        await self._burial.end_shim(None if lost else shim, record, last=last)
        if lost and not record.binary:
            await self._burial.end_commands(bundle)
        found = bundle.read_runtime()
        if found is not None and Path(found[1], bundle.id).exists():
            await self._half_made.end(bundle, record)

    async def _remove(self, bundle: Bundle, address: str) -> None:
        if address and not self._groups.has(address):
            Path(address).unlink(missing_ok=True)
        if not self._half_made.keeps(bundle):
            await self._burial.empty(self._store.discard(bundle))


async def _forked(shared: SharedShim) -> None:
    """Waits for the fork, whose pid every member's record names. Raises Unavailable."""
    if shared.forking is not None:
        pid = await asyncio.shield(shared.forking)
        if not shared.record.pid:
            started = process.start_time(pid) or 0
            shared.record = replace(shared.record, pid=pid, start_time=started)
