"""One container: its init, its execs, and the order in which their lives may be told.

``service`` calls it for requests, the reaper for exits. Rules kept here: no process exits before
its start was announced; init is announced last; an exec cannot start once init has ended;
whatever a failed request had done is undone before it fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.message import Message

from protos.containerd.events import events_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    NotFound,
    Unknown,
)
from supervisord.linux import cgroups

from . import exits, log, running
from .bundle import Bundle, mentions, remove
from .console import ConsoleSocket
from .delete import delete
from .enter import enter
from .loop import Loop
from .machine import Effect, Event, Phase
from .oom import Oom
from .process import Process
from .reaper import Exit, Reaper
from .restore import Restore
from .runtime import Runtime
from .start import start
from .stdio import Stdio, Wishes

SIGKILL = 9
_DRAIN_SECONDS = 10.0
_EXECS_SECONDS = 10.0
_KILLED_SECONDS = 5.0
_ENDED_SIGNS = (
    "process already finished",
    "container not running",
    "no such process",
    "sandbox is not running",
)
"""What runtimes say of a signal that comes too late."""

Publish = Callable[[str, Message], None]
Command = Callable[[str], Coroutine[Any, Any, None]]


class Container:
    """Made by ``create.create``, when the runtime has set it up."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        id: str,
        namespace: str,
        bundle: Bundle,
        runtime: Runtime,
        init: Process,
        publish: Publish,
        owner: tuple[int, int],
    ) -> None:
        self.loop = loop
        self.reaper = reaper
        self.id = id
        self.namespace = namespace
        self.bundle = bundle
        self.runtime = runtime
        self.init = init
        self.execs: dict[str, Process] = {}
        self.publish = publish
        self.owner = owner
        """User and group that pipes of the container belong to."""
        self.cgroup: cgroups.Cgroup | None = None
        self.private_pids = False
        """Whether init has a pid namespace of its own: its end is then everyone's."""
        self.exec_by_hand = True
        """Whether ``enter`` may start execs."""
        self.restore: Restore | None = None
        """Set when start means to restore a checkpoint."""
        self.on_overlay = False
        """Whether the root filesystem is an overlay, which is taken down behind the answer."""
        self.remains = -1
        """After a deletion, a descriptor that keeps the root filesystem until it is closed."""
        self._oom: Oom | None = None

    def created(self, facts: dict[str, Any]) -> None:
        """Init is there, waiting: takes what ``observe`` has found. Call inside
        ``reaper.early``."""
        self.found(facts)
        self.reaper.expect(self.init.pid, self.init_exited)

    def found(self, facts: dict[str, Any]) -> None:
        """Takes what ``observe`` has found of init, and watches the container's memory."""
        self.init.pid = facts["pid"]
        self.private_pids = facts["private"]
        if facts["paths"] is not None:
            self.cgroup = cgroups.Cgroup(cgroups.ROOT, facts["unified"], facts["paths"])
            self.loop.soon(self._watch_memory)  # nothing runs yet, and an answer is waited for

    def process(self, exec_id: str) -> Process:
        """Init ("") or an exec. Raises NotFound."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise NotFound(f"process does not exist {exec_id}: not found")
        return process

    @property
    def _unrestored(self) -> bool:
        """Whether there is no init yet: only ``start`` makes it, from a checkpoint."""
        return self.restore is not None and not self.init.pid

    def status(self, process: Process) -> str:
        """The state as clients see it; a paused container's processes are all paused."""
        if process is not self.init and self.init.status in ("PAUSED", "PAUSING"):
            return self.init.status
        return process.status

    # Start --------------------------------------------------------------------------------

    async def start(self, exec_id: str) -> int:
        """Starts init or an exec, and answers its pid. Raises FailedPrecondition, Unknown."""
        process = self.process(exec_id)
        async with process.lock:
            if exec_id and (self.init.exit is not None or self.init.machine.is_ending):
                raise FailedPrecondition(f"container {self.id} init process is not running")
            if exec_id and self.init.status in ("PAUSED", "PAUSING"):
                raise FailedPrecondition("cannot exec in a paused container")
            process.machine.feed(Event.START)
            try:
                if exec_id:
                    await self._start_exec(process)
                elif self.restore is not None:
                    await self.restore.run(self)
                else:
                    await start(self)
            except BaseException:
                self._carry_out(process, process.machine.feed(Event.START_FAILED))
                if process.machine.phase is Phase.STOPPED:
                    process.announce()  # whoever waits for it must not wait for ever
                raise
            self._carry_out(process, process.machine.feed(Event.STARTED))
        return process.pid

    async def _start_exec(self, process: Process) -> None:
        stdio, bundle = process.stdio, self.bundle
        pid_file = bundle.exec_pid_file(process.id)
        description = bundle.exec_process_file(process.id)
        pid = 0
        try:
            with self.reaper.early:
                if process.wishes.terminal:
                    with ConsoleSocket(bundle.path, f"{process.id}.pty") as console:
                        pid = await self.runtime.exec(
                            self.id, description, pid_file, None, console=console.path
                        )
                        master = await console.master(self.loop)
                    await stdio.attach(master, process.id, self.namespace)
                else:
                    streams = await stdio.open(process.id, self.namespace, *self.owner)
                    pid = await enter(self, description, streams)
                    if not pid:
                        pid = await self.runtime.exec(self.id, description, pid_file, streams)
                    stdio.given()
                self.reaper.check(pid, child=False)
                process.pid = pid
                # One of the two records is there before anybody is told: a later shim knows of it.
                self.reaper.expect_at_once(pid, lambda exit: self.exec_exited(process, exit))
            if process.exit is None:
                running.write(bundle.path, process.id, pid, process.wishes, stdio)
        except BaseException:
            if pid:  # it runs, but nobody could talk to it
                with contextlib.suppress(ProcessLookupError, Unknown):
                    self.reaper.check(pid, child=False)
                    os.kill(pid, SIGKILL)
            stdio.close()
            raise
        finally:
            remove(description)
            remove(pid_file)

    # Execs --------------------------------------------------------------------------------

    def add_exec(self, exec_id: str, wishes: Wishes, spec: bytes) -> Process:
        """Adds an exec. Raises AlreadyExists, FailedPrecondition."""
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}: already exists")
        if self.init.exit is not None:
            raise FailedPrecondition("cannot exec in a stopped container")
        if self._unrestored:
            raise FailedPrecondition("cannot exec in a created container")
        self.init.machine.feed(Event.EXEC)
        self.bundle.write(f"{exec_id}.process.json", spec)
        stdio = Stdio(self.loop, self.reaper, wishes)
        process = Process(self.loop, exec_id, wishes, stdio, is_exec=True)
        self.execs[exec_id] = process
        return process

    # Signals ------------------------------------------------------------------------------

    async def kill(self, exec_id: str, signal: int, all: bool) -> None:
        """Sends a signal to init, to an exec, or to ``all`` processes.

        Raises NotFound when it has ended already."""
        process = self.process(exec_id)
        if exec_id:
            process.signal(signal)
            return
        if self._unrestored:
            raise FailedPrecondition("process not created")
        if process.exit is not None and (self.private_pids or not all):
            raise NotFound("process already finished")
        # The kernel ends a pid namespace with its first process. A sandboxed process is
        # elsewhere: that is the runtime's business.
        if self.runtime.plain_processes and (not all or (signal == SIGKILL and self.private_pids)):
            process.signal(signal)
            if signal == SIGKILL and process.status != "RUNNING":
                await self._let_die()
            return
        if process.exit is None or not all:
            process.machine.feed(Event.KILL)
        await self._runtime_kill(signal, all)

    async def _let_die(self) -> None:
        """A frozen process takes no signal, not even the last one."""
        if self.init.status in ("PAUSED", "PAUSING"):
            try:
                await self.runtime.resume(self.id)
            except Error as error:
                log.warning("a killed container stays frozen", id=self.id, error=error)

    async def _runtime_kill(self, signal: int, all: bool) -> None:
        try:
            await self.runtime.kill(self.id, signal, all=all)
        except Error as error:
            told = error.message.lower()
            if any(sign in told for sign in _ENDED_SIGNS):
                raise NotFound("process already finished") from error
            if "does not exist" in told or not self.runtime.holds(self.id):
                raise NotFound("no such container") from error
            raise

    # Pause, resume, update ----------------------------------------------------------------

    async def pause(self) -> None:
        """Freezes all processes. Raises FailedPrecondition, Unknown."""
        await self._frozen(
            Event.PAUSE,
            Event.PAUSE_DONE,
            Event.PAUSE_FAILED,
            self.runtime.pause,
        )

    async def resume(self) -> None:
        """Thaws them. Raises FailedPrecondition, Unknown."""
        await self._frozen(
            Event.RESUME,
            Event.RESUME_DONE,
            Event.RESUME_FAILED,
            self.runtime.resume,
        )

    async def _frozen(self, ask: Event, done: Event, failed: Event, command: Command) -> None:
        init = self.init
        async with init.lock:
            init.machine.feed(ask)
            try:
                await command(self.id)
            except BaseException:
                if ask is Event.PAUSE:
                    await self._unfreeze()
                self._carry_out(init, init.machine.feed(failed))
                raise
            self._carry_out(init, init.machine.feed(done))

    async def _unfreeze(self) -> None:
        """A pause that failed may have got halfway, or all the way."""
        try:
            await self.runtime.resume(self.id)
        except Error as error:
            log.debug("nothing was frozen", id=self.id, error=error)

    async def update(self, resources: bytes) -> None:
        """Applies LinuxResources (JSON). Raises FailedPrecondition, Unknown."""
        async with self.init.lock:
            self.init.machine.feed(Event.UPDATE)
            path = self.bundle.write("resources.json", resources)
            try:
                await self.runtime.update(self.id, path)
            finally:
                remove(path)

    # Delete -------------------------------------------------------------------------------

    async def delete(self, exec_id: str) -> Exit:
        """Deletes an ended process. Init takes all of the container with it.

        Raises FailedPrecondition while it runs."""
        process = self.process(exec_id)
        async with process.lock:
            unstarted = process.machine.phase is Phase.CREATED
            process.machine.feed(Event.DELETE)
            try:
                if exec_id:
                    await self._delete_exec(process)
                else:
                    await self._delete_init(process, force=unstarted)
            except BaseException:
                process.machine.feed(Event.DELETE_FAILED)
                raise
            process.machine.feed(Event.DELETE_DONE)
        return process.exit or Exit(process.pid, 0, 0)

    async def _delete_exec(self, process: Process) -> None:
        await process.stdio.drained(_DRAIN_SECONDS)
        process.stdio.close()
        remove(self.bundle.exec_process_file(process.id))
        exits.remove(self.bundle.path, process.id)
        running.forget(self.bundle.path, process.id)
        self.execs.pop(process.id, None)
        if not process.ended.done:
            process.announce()

    async def _delete_init(self, init: Process, *, force: bool) -> None:
        if not force:
            await init.stdio.drained(_DRAIN_SECONDS)
        await self._remove(force)
        if init.pid and not init.ended.done:
            await self._wait_gone(init)
        for process in self.execs.values():
            process.stdio.close()
            if not process.ended.done:
                process.announce()  # whoever waits for one that never began
        if not init.ended.done:
            init.announce()
        init.stdio.close()
        self._unwatch_memory()

    async def _remove(self, force: bool) -> None:
        """What the runtime holds, and the mounts."""
        if not force and await delete(self):
            if self.on_overlay and self.remains < 0:
                self.remains = self.bundle.detach()
            else:
                self.bundle.unmount()
            return
        if not mentions(self.bundle.path, "poststop"):
            # While the runtime works; the kernel takes its time over the last unmount.
            self.loop.soon(self._try_unmount)
        await self.runtime.delete(self.id, force=force)
        self.bundle.unmount()

    def _try_unmount(self) -> None:
        try:
            self.bundle.unmount()
        except Error as error:
            log.debug("rootfs is busy", error=error)  # tried again after the runtime

    async def _wait_gone(self, init: Process) -> None:
        try:
            await self.loop.within(_KILLED_SECONDS, init.ended, "exit of init")
        except DeadlineExceeded as error:
            log.warning("init outlives its container", pid=init.pid, error=error)

    # Exits --------------------------------------------------------------------------------

    def init_exited(self, exit: Exit) -> None:
        """Init has ended."""
        self.init.left(exit)
        exits.write(self.bundle.path, "", exit)
        if self.private_pids and not self._running_execs():
            self._carry_out(self.init, self.init.machine.feed(Event.EXITED))
        else:
            self.loop.spawn(self._end_all(), "end of init")

    async def _end_all(self) -> None:
        """Init is the last to be announced; without a pid namespace its kin is killed first."""
        if not self.private_pids:
            try:
                await self.runtime.kill(self.id, SIGKILL, all=True)
            except Error as error:
                log.warning("processes may be left over", id=self.id, error=error)
        for process in self._running_execs():
            try:
                await self.loop.within(_EXECS_SECONDS, process.ended, "exit of an exec")
            except DeadlineExceeded as error:
                log.warning("an exec outlives init", exec_id=process.id, error=error)
        self._carry_out(self.init, self.init.machine.feed(Event.EXITED))

    def _running_execs(self) -> list[Process]:
        return [
            process
            for process in self.execs.values()
            if not process.ended.done and process.machine.phase is not Phase.CREATED
        ]

    def exec_exited(self, process: Process, exit: Exit) -> None:
        """An exec has ended."""
        process.left(exit)
        exits.write(self.bundle.path, process.id, exit)
        self._carry_out(process, process.machine.feed(Event.EXITED))

    def _carry_out(self, process: Process, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if effect is Effect.ANNOUNCE_START:
                self._announce_start(process)
            elif effect is Effect.ANNOUNCE_EXIT:
                self._announce_exit(process)
            elif effect is Effect.THAW:
                self.loop.spawn(self._thaw(), "thaw")

    def _announce_start(self, process: Process) -> None:
        if process is self.init:
            event = events_pb2.TaskStart(container_id=self.id, pid=process.pid)
            self.publish("/tasks/start", event)
        else:
            self.publish(
                "/tasks/exec-started",
                events_pb2.TaskExecStarted(
                    container_id=self.id, exec_id=process.id, pid=process.pid
                ),
            )

    def _announce_exit(self, process: Process) -> None:
        """Whoever waits for it comes first, then those who subscribe."""
        exit = process.announce()
        self.loop.soon(lambda: self._publish_exit(process, exit))

    def _publish_exit(self, process: Process, exit: Exit) -> None:
        if process is self.init:
            self._unwatch_memory()  # a kill is told before the exit that it caused
        event = events_pb2.TaskExit(
            container_id=self.id,
            id=process.id,
            pid=exit.pid,
            exit_status=exit.status,
        )
        event.exited_at.seconds, event.exited_at.nanos = divmod(exit.at, 1_000_000_000)
        self.publish("/tasks/exit", event)

    async def _thaw(self) -> None:
        async with self.init.lock:
            try:
                await self.runtime.resume(self.id)
            except Error as error:
                log.warning("an ended container stays frozen", id=self.id, error=error)

    # Memory -------------------------------------------------------------------------------

    def _watch_memory(self) -> None:
        if self.cgroup is None or self.init.exit is not None:
            return
        try:
            self._oom = Oom(self.loop, self.cgroup, self._out_of_memory)
        except NotFound as error:
            log.debug("out-of-memory kills are not watched", id=self.id, error=error)

    def _out_of_memory(self) -> None:
        self.publish("/tasks/oom", events_pb2.TaskOOM(container_id=self.id))

    def _unwatch_memory(self) -> None:
        if self._oom is not None:
            self._oom.close()
            self._oom = None


def observe(pid: int) -> dict[str, Any]:
    """The facts of a container's init that only its being alive tells: ``pid``, ``private``
    (whether it has a pid namespace of its own), and its control groups: ``unified`` and
    ``paths``, None where they cannot be told."""
    facts: dict[str, Any] = {"pid": pid, "private": is_first_in_namespace(pid), "paths": None}
    try:
        cgroup = cgroups.of_pid(pid)
    except NotFound:
        return facts
    return {**facts, "unified": cgroup.unified, "paths": dict(cgroup.paths)}


def is_first_in_namespace(pid: int) -> bool:
    """Whether a process is the first of a pid namespace of its own: its last pid in NSpid is 1.
    False where that cannot be told."""
    for line in (cgroups.read(f"/proc/{pid}/status") or "").splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False
