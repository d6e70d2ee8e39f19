"""Keeps tasks and shims together: at boot, after a lost connection, and when a shim is dead.

At boot every bundle becomes a task at once, before its shim has answered, so that the daemon can
serve; each shim then has a loop and deadlines of its own. A bundle whose creation had not ended
is removed with all that it had started (``half_made``). A shim is dead when its process is gone:
then its container gets a new one (``adoption``), or, where init has ended as well or that is not
possible, is removed (``burial``), its exit taken from what the shim or the kernel has kept, and its
end published.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import Message

from protos.containerd.events import events_pb2
from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import DeadlineExceeded, Error, NotFound, Unavailable
from supervisord.contracts.events import Envelope, Publisher
from supervisord.contracts.tasks import Exit
from supervisord.contracts.typed import pack
from supervisord.linux import process

from .adoption import Adoption, may_do_better
from .bundle import Bundle, BundleStore, ShimRecord
from .burial import Burial
from .foreign import ForeignLauncher
from .groups import Groups
from .half_made import HalfMade
from .launch import connect
from .shim import CONNECT_SECONDS, Shim
from .task import UNKNOWN, Ended, Task, killed

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_ADOPTIONS = 5
"""New shims that may fail to take over a container before it is ended."""


class Recovery:
    """Watches shims for the manager. ``forget`` takes a task off the manager's list."""

    def __init__(
        self,
        store: BundleStore,
        burial: Burial,
        adoption: Adoption,
        foreign: ForeignLauncher,
        publisher: Publisher,
        groups: Groups,
        half_made: HalfMade,
        locks: KeyedLock,
        owner: TaskOwner,
        watching: TaskOwner,
        sockets: str,
        shim_seconds: float,
        forget: Callable[[Task], None],
    ) -> None:
        """``sockets`` is the folder of our shims' sockets, ``shim_seconds`` how long a shim may
        take to answer."""
        self._store = store
        self._burial = burial
        self._adoption = adoption
        self._foreign = foreign
        self._publisher = publisher
        self._groups = groups
        self._half_made = half_made
        self._locks = locks
        self._owner = owner
        self._watching = watching
        self._sockets = sockets
        self._shim_seconds = shim_seconds
        self._began = 0.0
        self._forget = forget

    # Boot ---------------------------------------------------------------------------------

    async def load(self) -> list[Task]:
        """The tasks of all whole bundles, not yet connected: ``watch`` them. Half-made ones are
        being removed under the lock of their names when this returns."""
        self._began = time.time()
        found = await asyncio.to_thread(
            lambda: [
                (bundle, bundle.read_record(), bundle.is_unclaimed())
                for bundle in self._store.all()
            ]
        )
        tasks: list[Task] = []
        for bundle, record, unclaimed in found:
            if record is not None and record.address:
                self._join(bundle, record)
            if record is not None and record.is_whole:
                task = Task(bundle, record, self._watching)
                task.is_unclaimed, task.may_be_lost = unclaimed, True
                tasks.append(task)
                continue
            await self._half_made.remove(bundle, record)
        known = {record.address for _, record, _ in found if record is not None}
        self._owner.spawn(self._empty_trash(), "empty trash")
        self._owner.spawn(self._end_orphans(known), "orphaned shims")
        return tasks

    def _join(self, bundle: Bundle, record: ShimRecord) -> None:
        """A foreign shim's groups are its own business, but one that two tasks share is still
        theirs both."""
        name = (bundle.namespace, record.group or bundle.id)
        key = (bundle.namespace, bundle.id)
        self._groups.join(("", record.address) if record.binary else name, key, record)

    async def _end_orphans(self, known: Set[str]) -> None:
        """Shims without a bundle: we died when their container was deleted and they were not yet
        told to end."""
        for address in await asyncio.to_thread(_older, self._sockets, self._began):
            if address not in known:
                self._owner.spawn(self._end_orphan(address), f"orphaned shim {address}")

    async def _end_orphan(self, address: str) -> None:
        try:
            shim = Shim(await connect(address, CONNECT_SECONDS), "", "", 3)
            pid, _ = await shim.connect()
            log.info("ending shim %s, which has no bundle", pid)
            await self._burial.end_shim(shim, ShimRecord(address))
        except Error as error:
            log.debug("orphaned shim %s: %s", address, error)
            Path(address).unlink(missing_ok=True)

    async def _empty_trash(self) -> None:
        for error in await asyncio.to_thread(self._store.empty_all):
            log.warning("trash: %s", error)

    # Connections --------------------------------------------------------------------------

    def watch(self, task: Task) -> None:
        """Keeps a task connected until it is over."""
        self._watching.spawn(self._keep(task), f"shim of {task.id}")

    async def _keep(self, task: Task) -> None:
        while not task.is_over:
            shim = task.shim
            if shim is not None:
                await shim.closed
                if not task.is_over:
                    log.info("shim of task %s disconnected", task.id)
                continue
            if not await self._reconnect(task):
                await self._lost(task)

    async def _reconnect(self, task: Task) -> bool:
        """True when connected, or over; False when the shim is dead."""
        pause = _FIRST_PAUSE
        while not task.is_over:
            alive = task.shim_is_alive()  # asked first: it may die between the two
            try:
                await self._attach(task)
                return True
            except (Unavailable, DeadlineExceeded) as error:
                log.debug("shim of task %s: %s", task.id, error)
                if not alive and isinstance(error, Unavailable):
                    return False
                task.is_stuck = isinstance(error, DeadlineExceeded)
            except Error as error:
                log.warning("shim of task %s: %s", task.id, error)
                if not alive and not task.record.binary:
                    return False  # it could not take the container over from its predecessor
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return True

    async def _attach(self, task: Task) -> None:
        record = task.record
        client = await connect(record.address, CONNECT_SECONDS)
        shim = Shim(client, *task.key, record.version, self._shim_seconds)
        try:
            if record.binary:
                self._foreign.read_log(task.bundle)
            pid, init_pid = await shim.connect()
        except BaseException:
            shim.close()
            raise
        if init_pid or (record.restores and await _holds(shim)):
            if init_pid and not record.init_pid:  # restored, and we died before we could note it
                await task.begun(init_pid)
                record = task.record
            if not record.binary and pid != record.pid:  # we died before we could note it
                task.record = replace(record, pid=pid, start_time=process.start_time(pid) or 0)
                await asyncio.to_thread(task.bundle.write_record, task.record)
            task.attach(shim)
            return
        # It had been deleted, and we died before we could say so.
        async with self._locks.hold(task.key):
            self.drop(task, shim)

    def drop(self, task: Task, shim: Shim) -> None:
        """Forgets a task of which the shim does not know any more: an earlier run of the daemon
        had it deleted, and died before it heard. The caller holds the lock of its name."""
        if task.is_over:
            return
        end = task.bundle.read_exit("")
        init = Exit("", end.pid, end.exit_status, end.exited_at) if end else killed(task.record)
        self._finish(task, Ended(init))
        ending = self._burial.end_shim(shim, task.record, last=task.was_last)
        self._owner.spawn(ending, f"end shim of {task.id}")

    async def settle(self, task: Task, shim: Shim) -> None:
        """The shim has said that it knows of no such container: forgets the task if so."""
        async with self._locks.hold(task.key):
            if await is_gone(task):
                self.drop(task, shim)

    # Death --------------------------------------------------------------------------------

    async def _lost(self, task: Task) -> None:
        """Gives the container of a dead shim a new one, or buries it and publishes its end;
        however often it takes."""
        pause = _FIRST_PAUSE
        tries = 0
        while True:
            async with self._locks.hold(task.key):
                if task.is_over:
                    return
                seen = task.seen_exit()
                if seen is not None and seen.exit_status == UNKNOWN:
                    await asyncio.sleep(_FIRST_PAUSE)  # it may be about to be reaped
                    seen = task.seen_exit()
                try:
                    if seen is None and not task.record.binary and tries < _ADOPTIONS:
                        log.warning("shim of task %s is dead, its container gets another", task.id)
                        task.attach(await self._adoption.adopt(task))
                        return
                    log.warning("shim of task %s is dead, cleaning up after it", task.id)
                    ended = await self._burial.bury(task.bundle, task.record, seen)
                    self._finish(task, ended)
                    break
                except Error as error:
                    log.error("task %s: %s", task.id, error)
                    if not isinstance(error, Unavailable):  # then nothing has been tried
                        tries += 1 if may_do_better(error) else _ADOPTIONS
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        for exit in ended.execs.values():
            self._publish_exit(task, exit)
        self._publish_exit(task, ended.init)
        self._publish_delete(task, ended.init)
        await self._burial.end_shim(None, task.record, last=task.was_last)

    def _finish(self, task: Task, ended: Ended) -> None:
        trash = self._store.discard(task.bundle)
        self._forget(task)
        task.finish(ended)
        self._owner.spawn(self._burial.empty(trash), f"empty {task.id}")

    def _publish_exit(self, task: Task, exit: Exit) -> None:
        """The exchange drops it where the shim had told it."""
        event = events_pb2.TaskExit(
            container_id=task.id,
            id=exit.exec_id or task.id,
            pid=exit.pid,
            exit_status=exit.exit_status,
        )
        event.exited_at.FromNanoseconds(exit.exited_at)
        self._forward(task, "/tasks/exit", event, exit.exited_at)

    def _publish_delete(self, task: Task, exit: Exit) -> None:
        deleted = events_pb2.TaskDelete(
            container_id=task.id, pid=exit.pid, exit_status=exit.exit_status
        )
        deleted.exited_at.FromNanoseconds(exit.exited_at)
        self._forward(task, "/tasks/delete", deleted, exit.exited_at)

    def _forward(self, task: Task, topic: str, event: Message, when: int) -> None:
        """Stamped with the time of the end, as its shim would have."""
        stamp = when or time.time_ns()
        self._publisher.forward(Envelope(stamp, task.bundle.namespace, topic, pack(event)))


def _older(folder: str, when: float) -> list[str]:
    """The files in a folder that are older; one may vanish while we look."""
    found = []
    for path in Path(folder).iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < when:
                found.append(str(path))
    return found


async def _holds(shim: Shim) -> bool:
    """Whether the shim knows the container. Raises what its answer raises otherwise."""
    try:
        await shim.state()
    except NotFound:
        return False
    return True


async def is_gone(task: Task) -> bool:
    """Whether the shim answers that it has no such container."""
    shim = task.shim
    if shim is None:
        return False
    try:
        await shim.state()
    except NotFound:
        return True
    except Error:
        return False
    return False
