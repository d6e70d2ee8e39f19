"""One task as the daemon holds it: its bundle, its shim's record, and the connection to the shim.

The connection may come and go; the task ends only when it is deleted or buried. Whoever waits for
a process waits here, across lost connections.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, NotFound, Unavailable
from supervisord.contracts.tasks import Exit
from supervisord.linux import process

from .bundle import Bundle, ShimRecord
from .shim import Shim
from .sight import News, Sight

log = logging.getLogger(__name__)

UNKNOWN = 255
"""The exit status of a process of which nobody can tell how it ended."""

KILLED = 137
"""The exit status of a process that ended with its shim, unseen: 128 + SIGKILL."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the processes of a task ended; execs that left no record are not listed."""

    init: Exit
    execs: Mapping[str, Exit] = field(default_factory=dict)

    def of(self, exec_id: str) -> Exit:
        """The exit of a process; without a record it was killed with the rest."""
        if not exec_id:
            return self.init
        return self.execs.get(exec_id) or Exit(exec_id, 0, KILLED, self.init.exited_at)


class Task:
    """State of one task. Only the manager and its helpers change it."""

    def __init__(self, bundle: Bundle, record: ShimRecord, owner: TaskOwner) -> None:
        self.bundle = bundle
        self.record = record
        self.is_unclaimed = False
        """Whether everybody who asked for it had left when it was made, and it is still unused."""
        self.may_be_lost = False
        """Whether an earlier daemon made it, which may have died before it could say so, and it is
        still unused."""
        self.was_last = True
        """Once it is over: whether its shim holds no other task."""
        self.sight = Sight()
        self._owner = owner
        self._shim: Shim | None = None
        self._ended: Ended | None = None
        self._changed: asyncio.Future[None] | None = None
        self._waits: dict[str, asyncio.Task[Exit]] = {}
        self._init = _open(record)
        self.is_stuck = False
        """Whether its shim has let a connection wait for too long."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and id."""
        return self.bundle.namespace, self.bundle.id

    @property
    def id(self) -> str:
        """The id of the container."""
        return self.bundle.id

    @property
    def is_over(self) -> bool:
        """Whether it has been deleted or buried."""
        return self._ended is not None

    @property
    def shim(self) -> Shim | None:
        """The shim, while it is connected."""
        if self._shim is not None and not self._shim.is_lost:
            return self._shim
        return None

    def shim_is_alive(self) -> bool:
        """Whether the shim's process is there, connected or not."""
        return process.alive(self.record.pid, self.record.start_time)

    def init_is_alive(self) -> bool:
        """Whether the container's init is there."""
        return process.alive(self.record.init_pid, self.record.init_start)

    def open_init(self) -> int:
        """A pidfd of the container's init, for the caller to close. Raises NotFound once it has
        ended."""
        if self._init < 0 or not self.init_is_alive():
            raise NotFound(f"init of task {self.id} has ended")
        return os.dup(self._init)

    def seen_exit(self) -> Exit | None:
        """How init ended, as far as the kernel tells us who are not its parent; None while it is
        alive."""
        if self.init_is_alive():
            return None
        status = process.exit_status(self._init, self.record.init_pid) if self._init >= 0 else None
        return Exit("", self.record.init_pid, UNKNOWN if status is None else status, time.time_ns())

    # Changes ------------------------------------------------------------------------------

    def attach(self, shim: Shim) -> None:
        """The shim is connected."""
        self._shim = shim
        self.sight.feed(News.DOUBT)
        self.is_stuck = False
        self._notify()

    async def begun(self, pid: int) -> None:
        """Init is there, restored from a checkpoint. Raises ResourceExhausted, Unknown."""
        started = process.start_time(pid) or 0
        self.record = replace(self.record, init_pid=pid, init_start=started)
        self._close_init()
        self._init = _open(self.record)
        await asyncio.to_thread(self.bundle.write_record, self.record)

    def finish(self, ended: Ended) -> None:
        """The task is over; whoever still waits is answered."""
        self._ended = ended
        self._close_init()
        self._notify()

    def close(self) -> None:
        """Drops the connection; shim and task live on."""
        if self._shim is not None:
            self._shim.close()
        self._close_init()

    def _close_init(self) -> None:
        if self._init >= 0:
            os.close(self._init)
            self._init = -1

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    async def change(self) -> None:
        """Waits until the shim is connected again or the task is over."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    # Use ----------------------------------------------------------------------------------

    def use(self) -> None:
        """Somebody knows of it: from now on it is neither removed nor given to a retry."""
        self.may_be_lost = False
        if self.is_unclaimed:
            self.is_unclaimed = False
            try:
                self.bundle.mark_claimed()
            except Error as error:  # matters only if the daemon is started anew
                log.error("task %s: %s", self.id, error)

    async def reach(self, seconds: float | None) -> Shim:
        """The connected shim; waits up to ``seconds`` for it to be back (None: for ever).

        Raises NotFound when the task is over, Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if self._ended is not None:
                        raise NotFound(f"task {self.id} not found")
                    if self.shim is not None:
                        return self.shim
                    await self.change()
        except TimeoutError:
            raise Unavailable(f"task {self.id}: its shim does not answer") from None

    async def settled(self, seconds: float) -> Ended | None:
        """Waits until a task that lost its shim is over or has one again (None). Raises
        Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                while self._ended is None and self.shim is None:
                    await self.change()
        except TimeoutError:
            raise Unavailable(f"task {self.id}: its shim does not answer") from None
        return self._ended

    async def wait(self, exec_id: str) -> Exit:
        """Waits for the end of a process. All waiters of one process share one call to the shim,
        and a lost connection does not end it. Raises NotFound."""
        wait = self._waits.get(exec_id)
        if wait is None:
            wait = self._owner.spawn(self._wait(exec_id), f"wait {self.id} {exec_id}")
            self._waits[exec_id] = wait
            wait.add_done_callback(lambda done: self._forget(exec_id, done))
        return await asyncio.shield(wait)

    def _forget(self, exec_id: str, wait: asyncio.Task[Exit]) -> None:
        if self._waits.get(exec_id) is wait:
            del self._waits[exec_id]

    async def _wait(self, exec_id: str) -> Exit:
        while True:
            if self._ended is not None:
                return self._ended.of(exec_id)
            shim = self.shim
            if shim is None:
                await self.change()
                continue
            try:
                exit = await shim.wait(exec_id)
            except Unavailable:
                if shim.is_lost:
                    continue
                raise
            except NotFound:
                if self._ended is not None:
                    return self._ended.of(exec_id)
                raise
            if exec_id:
                return exit
            self.sight.ended(exit.exit_status, exit.exited_at)  # the event may come later
            return replace(exit, pid=self.record.init_pid)


def _open(record: ShimRecord) -> int:
    """A pidfd of the init in the record; -1 where that has ended. With it the kernel keeps the
    exit status for us, and the pid from being mistaken for a later process's."""
    try:
        pidfd = process.pidfd_open(record.init_pid)
    except OSError:
        return -1
    if process.alive(record.init_pid, record.init_start):
        return pidfd
    os.close(pidfd)
    return -1


def killed(record: ShimRecord) -> Exit:
    """The exit of an init of which nothing is known but that it is gone."""
    return Exit("", record.init_pid, KILLED, time.time_ns())
