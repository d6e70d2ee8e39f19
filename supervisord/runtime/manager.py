"""The task manager: what the edges call (contracts.tasks).

It finds the task, asks its shim, and translates. Creating, deleting and burying hold the lock of
the task's name; everything else goes straight to the shim, which keeps its own order. A creation
is joined by a retry of the same request, and goes on when its callers go away (``orders``): a retry
takes what it made; what nobody comes back for is removed (``claims``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.containers import ContainerStore
from supervisord.contracts.content import ContentStore
from supervisord.contracts.errors import Error, NotFound, Unavailable
from supervisord.contracts.events import Exchange
from supervisord.contracts.filters import Filter, parse
from supervisord.contracts.identifiers import check_identifier
from supervisord.contracts.images import Descriptor
from supervisord.contracts.leases import LeaseStore
from supervisord.contracts.mounts import MountManager
from supervisord.contracts.scope import Scope
from supervisord.contracts.tasks import (
    CreateTask,
    Exit,
    Metric,
    Process,
    ProcessInfo,
    Status,
    Stdio,
)
from supervisord.contracts.typed import TypedValue
from supervisord.contracts.workers import ShimSpawner

from .adoption import Adoption
from .bundle import BundleStore
from .burial import Burial
from .checkpoint import Checkpoints
from .claims import Claims
from .clearing import Clearing
from .creation import Creation, Sandboxes
from .foreign import ForeignLauncher
from .forewarning import Forewarning
from .groups import Groups
from .half_made import HalfMade
from .hearing import Hearing
from .info import runtime_info
from .launch import Launcher, Settings
from .oci import OciRuntimes
from .orders import Order, Orders
from .recovery import Recovery
from .resources import check_resources
from .rootfs import Rootfs
from .shim import STATE_SECONDS, Shim
from .sight import News
from .task import Ended, Task

log = logging.getLogger(__name__)

T = TypeVar("T")

_REACH_SECONDS = 10.0
_SOON_SECONDS = 0.5
_END_SECONDS = 30.0
_CLOSE_SECONDS = 5.0


class TaskManager:
    """Implements contracts.tasks.TaskManager and LogKeeper. ``open`` it before use, ``close`` it
    at the end: shims and containers live on."""

    def __init__(
        self,
        settings: Settings,
        containers: ContainerStore,
        exchange: Exchange,
        spawner: ShimSpawner,
        runtimes: OciRuntimes,
        content: ContentStore | None = None,
        leases: LeaseStore | None = None,
        mounts: MountManager | None = None,
    ) -> None:
        self._settings = settings
        self._exchange = exchange
        self._containers = containers
        self._tasks: dict[tuple[str, str], Task] = {}
        self._locks = KeyedLock()
        self._owner = TaskOwner("tasks")  # work with an end of its own
        self._watching = TaskOwner("shims")  # what goes on for as long as a shim or a waiter
        self._orders = Orders(self._owner)
        self._forewarning = Forewarning(self._owner)
        self._groups = Groups()
        self._store = BundleStore(settings.state)
        self._runtimes = runtimes
        self._checkpoints = Checkpoints(content, leases, settings.state)
        foreign = ForeignLauncher(settings, self._watching)
        self._burial = Burial(self._store, foreign)
        self._clearing = Clearing(self._owner, self._burial)
        launcher = Launcher(settings, spawner, self._owner)
        self._half_made = HalfMade(
            self._store,
            self._burial,
            self._groups,
            self._locks,
            self._owner,
            self._watching,
            settings.shim_seconds,
        )
        self._rootfs = Rootfs(mounts, runtimes, self._owner)
        self._creation = Creation(
            settings,
            self._store,
            launcher,
            foreign,
            self._burial,
            runtimes,
            self._checkpoints,
            self._groups,
            self._half_made,
            self._rootfs,
            self._owner,
            self._watching,
        )
        self._recovery = Recovery(
            self._store,
            self._burial,
            Adoption(settings, launcher, self._burial, runtimes, self._groups),
            foreign,
            exchange,
            self._groups,
            self._half_made,
            self._locks,
            self._owner,
            self._watching,
            settings.sockets,
            settings.shim_seconds,
            self._forget,
        )
        self._claims = Claims(
            self._tasks, self._locks, self._watching, self._recovery, self._delete_held
        )

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def settings(self) -> Settings:
        """Where things are."""
        return self._settings

    @property
    def runtimes(self) -> OciRuntimes:
        """The OCI runtimes that shims are told."""
        return self._runtimes

    @property
    def groups(self) -> Groups:
        """Which tasks share a shim; sandboxes bring theirs."""
        return self._groups

    def attach(self, sandboxes: Sandboxes) -> None:
        """From now on containers join the shims of their sandboxes."""
        self._creation.sandboxes = sandboxes

    def in_sandbox(self, namespace: str, sandbox: str) -> Sequence[str]:
        """The ids of the tasks whose containers belong to a sandbox."""
        found: list[str] = []
        for task in self._of(namespace):
            with suppress(NotFound):
                if self._containers.get(namespace, task.id).sandbox == sandbox:
                    found.append(task.id)
        return found

    async def open(self) -> None:
        """Makes the folders and finds the tasks of an earlier run; returns before their shims
        have answered."""
        await asyncio.to_thread(self._store.prepare)
        await asyncio.to_thread(self._settings.prepare)
        self._runtimes.begin()
        self._exchange.attend(Hearing(self._tasks))
        for task in await self._recovery.load():
            self._tasks[task.key] = task
            self._recovery.watch(task)
            self._claims.keep(task)

    async def close(self) -> None:
        """Lets go of all shims."""
        self._exchange.attend(None)
        await self._watching.close()
        await self._owner.close(grace=_CLOSE_SECONDS)
        for task in self._tasks.values():
            task.close()

    async def plugin_info(self, options: TypedValue) -> TypedValue:
        """What a runtime can do (contracts.plugins.Informative); see ``info``."""
        return await runtime_info(options, self._runtimes, self._settings.shims)

    # Create and delete --------------------------------------------------------------------

    async def create(self, namespace: str, request: CreateTask) -> int:
        """See the contract."""
        id = check_identifier(request.container_id, "container_id")
        container = self._containers.get(namespace, id)
        self._forewarning.give()
        order = Order(namespace, container, request)
        task = await self._orders.place(order, self._create)
        return task.record.init_pid

    async def _create(self, order: Order) -> Task:
        try:
            async with self._claims.way(order) as claimed:
                if claimed is not None:
                    return claimed
                self._half_made.check(order.key)
                await self._clearing.done(order.key)
                task = await self._creation.create(order)
                self._tasks[order.key] = task
                self._claims.keep(task)
        finally:
            self._orders.close(order)
        self._recovery.watch(task)
        return task

    async def delete(self, namespace: str, id: str) -> Exit:
        """See the contract."""
        task = self._task(namespace, id)
        try:
            return await self._owner.shielded(self._delete(task), f"delete {id}")
        except Unavailable:
            if task.shim is not None:
                raise
            ended = await task.settled(_END_SECONDS)  # the shim died: another one, or a burial
            if ended is not None:
                return ended.init
            return await self._owner.shielded(self._delete(task), f"delete {id}")

    async def _delete(self, task: Task) -> Exit:
        while True:
            await task.reach(_REACH_SECONDS)  # not under the lock, which a new shim needs
            async with self._locks.hold(task.key):
                if task.shim is not None and not task.is_over:
                    return await self._delete_held(task, task.shim)

    async def _delete_held(self, task: Task, shim: Shim) -> Exit:
        try:
            exit = await shim.delete()
        except NotFound:
            await self._end_foreign(task, shim)
            self._release(task, shim, Ended(Exit("", task.record.init_pid, 255, 0)))
            raise
        await self._end_foreign(task, shim)
        self._release(task, shim, Ended(exit))
        return exit

    async def _end_foreign(self, task: Task, shim: Shim) -> None:
        if task.record.binary:
            last = self._groups.leave(task.key, task.record)
            await self._burial.end_foreign(shim, task.bundle, task.record, last=last)

    def _release(self, task: Task, shim: Shim, ended: Ended) -> None:
        """The container is gone: its name is free at once, the rest follows behind the answer."""
        trash = self._store.discard(task.bundle)
        self._forget(task)
        task.finish(ended)
        self._clearing.begin(task, shim, trash)

    def _forget(self, task: Task) -> None:
        if self._tasks.get(task.key) is task:
            del self._tasks[task.key]
            task.was_last = self._groups.leave(task.key, task.record)
            self._rootfs.release(*task.key)

    # Processes ----------------------------------------------------------------------------

    async def start(self, namespace: str, id: str, exec_id: str = "") -> int:
        """See the contract."""
        shim = await self._shim(namespace, id)
        task = self._task(namespace, id)
        sight = task.sight
        if not exec_id and not task.record.init_pid:
            return await self._owner.shielded(self._restore(task, shim), f"restore {id}")
        with sight.refusable() if exec_id else sight.changing(News.STARTED):
            return await shim.start(exec_id)

    async def _restore(self, task: Task, shim: Shim) -> int:
        """The start of a task that was made from a checkpoint: init is there only now."""
        with task.sight.changing():
            pid = await shim.start()
            await task.begun(pid)
        return pid

    async def delete_process(self, namespace: str, id: str, exec_id: str) -> Exit:
        """See the contract."""
        check_identifier(exec_id, "exec_id")
        return await (await self._shim(namespace, id)).delete(exec_id)

    async def exec(
        self, namespace: str, id: str, exec_id: str, stdio: Stdio, spec: TypedValue
    ) -> None:
        """See the contract."""
        check_identifier(exec_id, "exec_id")
        self._forewarning.give()
        shim = await self._shim(namespace, id)
        with self._task(namespace, id).sight.refusable():
            await shim.exec(exec_id, stdio, spec)

    async def kill(
        self, namespace: str, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None:
        """See the contract."""
        with self._task(namespace, id).sight.refusable():
            await self._ask(namespace, id, lambda shim: shim.kill(signal, exec_id=exec_id, all=all))

    async def wait(self, namespace: str, id: str, exec_id: str = "") -> Exit:
        """See the contract."""
        return await self._task(namespace, id).wait(exec_id)

    async def get(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """See the contract."""
        task = self._task(namespace, id)
        return await self._ask(
            namespace, id, lambda shim: shim.state(exec_id) if exec_id else _seen(task, shim)
        )

    async def list(self, namespace: str) -> Sequence[Process]:
        """See the contract. Only shims of which too little is known are asked."""
        tasks = self._of(namespace)
        # All at once: what is known of one may be in doubt by the time that another has answered.
        known = [task.sight.process if task.shim is not None else None for task in tasks]
        pairs = list(zip(tasks, known, strict=True))
        asked = await asyncio.gather(*(self._state(task) for task, seen in pairs if seen is None))
        answers = iter(asked)
        found = [next(answers) if seen is None else seen for _, seen in pairs]
        return [process for process in found if process is not None]

    async def _state(self, task: Task) -> Process | None:
        shim = task.shim
        if shim is None and not task.is_stuck:  # it is being connected, which takes a moment
            with suppress(Error):
                shim = await task.reach(_SOON_SECONDS)
        if shim is not None:
            try:
                return await _seen(task, shim)
            except NotFound:  # deleted meanwhile, or in an earlier run
                self._owner.spawn(self._recovery.settle(task, shim), f"settle {task.id}")
                return None
            except Error as error:
                log.warning("state of task %s: %s", task.id, error)
        if task.is_over:
            return None
        return Process(task.id, "", task.record.init_pid, Status.UNKNOWN, Stdio())

    async def pids(self, namespace: str, id: str) -> Sequence[ProcessInfo]:
        """See the contract."""
        return await self._ask(namespace, id, lambda shim: shim.pids())

    # The rest -----------------------------------------------------------------------------

    async def resize(self, namespace: str, id: str, exec_id: str, width: int, height: int) -> None:
        """See the contract."""
        await self._ask(namespace, id, lambda shim: shim.resize(exec_id, width, height))

    async def close_io(self, namespace: str, id: str, exec_id: str, *, stdin: bool) -> None:
        """See the contract."""
        shim = await self._shim(namespace, id)
        if stdin:
            await shim.close_io(exec_id)

    async def reopen_logs(self, namespace: str, id: str, exec_id: str = "") -> None:
        """See contracts.tasks.LogKeeper."""
        await (await self._shim(namespace, id)).reopen_logs(exec_id)

    async def pause(self, namespace: str, id: str) -> None:
        """See the contract."""
        shim = await self._shim(namespace, id)
        with self._task(namespace, id).sight.changing():
            await shim.pause()

    async def resume(self, namespace: str, id: str) -> None:
        """See the contract."""
        shim = await self._shim(namespace, id)
        with self._task(namespace, id).sight.changing():
            await shim.resume()

    async def update(
        self,
        namespace: str,
        id: str,
        resources: TypedValue,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """See the contract."""
        check_resources(resources.value)
        await self._ask(namespace, id, lambda shim: shim.update(resources, annotations or {}))

    async def checkpoint(
        self, scope: Scope, id: str, parent: str, options: TypedValue
    ) -> Sequence[Descriptor]:
        """See the contract. ``parent`` has never had a meaning for runc's shims."""
        shim = await self._shim(scope.namespace, id)
        spec = self._containers.get(scope.namespace, id).spec
        return await self._checkpoints.make(scope, shim, spec, options)

    async def metrics(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """See the contract."""
        wanted = parse(filters)
        tasks = [task for task in self._of(namespace) if _matches(wanted, task)]
        metrics = await asyncio.gather(*(self._metric(task) for task in tasks))
        return [metric for metric in metrics if metric is not None]

    async def _metric(self, task: Task) -> Metric | None:
        shim = task.shim
        if shim is None:
            return None
        try:
            now = time.time_ns()
            return Metric(task.id, now, await shim.stats(STATE_SECONDS))
        except NotFound:
            return None
        except Error as error:
            log.warning("metrics of task %s: %s", task.id, error)
            return None

    # Finding ------------------------------------------------------------------------------

    def _of(self, namespace: str) -> Sequence[Task]:
        return [task for key, task in self._tasks.items() if key[0] == namespace]

    def _task(self, namespace: str, id: str) -> Task:
        task = self._tasks.get((namespace, id))
        if task is None:
            self._containers.get(namespace, id)  # an unknown container is told as such
            raise NotFound(f"task {id} not found")
        task.use()
        return task

    async def _shim(self, namespace: str, id: str) -> Shim:
        return await self._task(namespace, id).reach(_REACH_SECONDS)

    async def _ask(self, namespace: str, id: str, call: Callable[[Shim], Awaitable[T]]) -> T:
        """The answer of the task's shim. For what may be asked twice: a shim that dies before it
        has answered has a successor, which is asked again."""
        task = self._task(namespace, id)
        shim = await task.reach(_REACH_SECONDS)
        try:
            return await call(shim)
        except Unavailable:
            if not shim.is_lost:
                raise
        return await call(await task.reach(_REACH_SECONDS))


async def _seen(task: Task, shim: Shim) -> Process:
    """The state of init: what is known, else what the shim says, which is kept if it lasts."""
    sight = task.sight
    if sight.process is not None:
        return sight.process
    heard = sight.heard
    process = await shim.state()
    if not task.record.binary:  # what others do to their containers is not told in events
        sight.answered(heard, process)
    return process


def _matches(wanted: Filter, task: Task) -> bool:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return task.id, True
        if path[0] == "namespace":
            return task.bundle.namespace, True
        return "", False

    return wanted.match(field)
