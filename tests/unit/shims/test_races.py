"""A container under every order of requests, of the runtime's answers, and of exits.

The runtime and the kernel are played: a command of the runtime ends when the test says so, well or
not, and processes end when it says so, also while a command still works on them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shims.bundle import Bundle
from shims.container import Container
from shims.loop import Future, Loop, Task
from shims.machine import Phase
from shims.process import Process
from shims.reaper import Early, Exit, Reaper
from shims.runtime import RuntimeFailure
from shims.stdio import Stdio, Wishes
from supervisord.contracts.errors import AlreadyExists, FailedPrecondition, NotFound

FIRST_PID = 1 << 23  # above what any kernel gives: a signal to it reaches nobody
NAMES = ("a", "b")
NONE = Wishes("", "", "", False)
EXPECTED = (NotFound, FailedPrecondition, AlreadyExists, RuntimeFailure)


class Kernel(Reaper):
    """The processes, and who is told of their ends; there are no real ones."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._owners = {}
        self._early = {}
        self.keeps_early = False
        self.early = Early(self)
        self.alive: list[int] = []
        self._last = FIRST_PID

    def spawn(self) -> int:
        self._last += 1
        self.alive.append(self._last)
        return self._last

    def check(self, pid: int, *, child: bool) -> None:
        assert pid in self.alive or pid in self._early

    def end(self, pid: int) -> None:
        self.alive.remove(pid)
        self.tell(Exit(pid, pid % 100, pid))


class Played:
    """The runtime: ``pending`` are the commands that have not ended."""

    plain_processes = True
    name = "played"
    systemd_cgroup = False

    def __init__(self, loop: Loop, kernel: Kernel, folder: str) -> None:
        self.root = self.bundle = folder
        self._loop = loop
        self._kernel = kernel
        self.pending: list[tuple[str, Future[None]]] = []

    async def _command(self, verb: str) -> None:
        ended: Future[None] = Future(self._loop)
        self.pending.append((verb, ended))
        await ended

    def holds(self, id: str) -> bool:
        return bool(self._kernel.alive)

    async def start(self, id: str) -> None:
        await self._command("start")

    async def pause(self, id: str) -> None:
        await self._command("pause")

    async def resume(self, id: str) -> None:
        await self._command("resume")

    async def kill(self, id: str, signal: int, *, all: bool) -> None:
        await self._command("kill")
        if all and signal == 9:
            for pid in list(self._kernel.alive):
                self._kernel.end(pid)

    async def delete(self, id: str, *, force: bool = False) -> None:
        await self._command("delete")
        if force:
            for pid in list(self._kernel.alive):
                self._kernel.end(pid)

    async def exec(self, *_: object, **__: object) -> int:
        """The process is there before the command ends, and may be gone by then."""
        pid = self._kernel.spawn()
        try:
            await self._command("exec")
        except RuntimeFailure:
            if pid in self._kernel.alive:
                self._kernel.end(pid)
            raise
        return pid


class Life(RuleBasedStateMachine):
    """``told`` is what was published, ``waits`` who waits for which process."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="race-")
        Path(self.folder, "rootfs").mkdir()
        Path(self.folder, "exits").mkdir()
        Path(self.folder, "config.json").write_text("{}")
        self.loop = Loop()
        self.kernel = Kernel(self.loop)
        self.runtime = Played(self.loop, self.kernel, self.folder)
        self.told: list[tuple[str, Any]] = []
        self.requests: list[Task[Any]] = []
        self.waits: list[tuple[Process, Task[Exit]]] = []
        self.frozen_kills = 0
        init = Process(self.loop, "", NONE, self.stdio(), is_exec=False)
        init.id = "c"
        self.container = Container(
            self.loop,
            self.kernel,
            "c",
            "ns",
            Bundle(self.folder),
            self.runtime,  # type: ignore[arg-type]
            init,
            self.publish,
            (0, 0),
        )
        self.container.exec_by_hand = False
        facts = {"pid": self.kernel.spawn(), "private": True, "paths": None}
        with self.kernel.early:
            self.container.created(facts)

    @initialize(private=st.booleans(), begun=st.integers(0, 3))
    def begin(self, private: bool, begun: int) -> None:
        """Without a pid namespace of its own, the end of init ends nobody else. So many steps of
        a usual life lie behind."""
        self.container.private_pids = private
        for step in range(begun):
            if step == 0:
                self.start("")
            elif step == 1:
                self.add(NAMES[0])
                self.start(NAMES[0])
            else:
                self.add(NAMES[1])
                continue
            self.runtime.pending.pop()[1].set(None)
            self.settle()

    def stdio(self) -> Stdio:
        return Stdio(self.loop, self.kernel, NONE)

    def publish(self, topic: str, event: Message) -> None:
        self.told.append((topic, event))

    def ask(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = self.loop.spawn(work, name)
        task.when_done(lambda: None)
        self.requests.append(task)
        self.settle()

    def settle(self) -> None:
        while self.loop._ready:
            self.loop.turn()

    def processes(self) -> Sequence[Process]:
        return [self.container.init, *self.container.execs.values()]

    # Requests -----------------------------------------------------------------------------

    @rule(name=st.sampled_from(("", *NAMES)))
    def start(self, name: str) -> None:
        self.ask(self.container.start(name), f"start {name}")

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        async def add() -> None:
            self.container.add_exec(name, NONE, b"{}")

        self.ask(add(), f"add {name}")

    @rule(name=st.sampled_from(("", *NAMES)), signal=st.sampled_from((9, 15)), all=st.booleans())
    def kill(self, name: str, signal: int, all: bool) -> None:
        self.ask(self.container.kill(name, signal, all), f"kill {name}")

    @rule(name=st.sampled_from(("", *NAMES)))
    def delete(self, name: str) -> None:
        self.ask(self.container.delete(name), f"delete {name}")

    @rule()
    def pause(self) -> None:
        self.ask(self.container.pause(), "pause")

    @rule()
    def resume(self) -> None:
        self.ask(self.container.resume(), "resume")

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.processes()))

        async def wait() -> Exit:
            return await process.ended

        self.waits.append((process, self.loop.spawn(wait(), "wait")))
        self.settle()

    # The runtime and the kernel -----------------------------------------------------------

    @precondition(lambda self: self.runtime.pending)
    @rule(data=st.data(), well=st.booleans())
    def answer(self, data: st.DataObject, well: bool) -> None:
        verb, ended = self.runtime.pending.pop(
            data.draw(st.integers(0, len(self.runtime.pending) - 1))
        )
        if well:
            ended.set(None)
        else:
            ended.fail(RuntimeFailure(verb, "refused"))
        self.settle()

    @precondition(lambda self: self.kernel.alive)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """One ends; with the init of a pid namespace all do, and are reaped in any order."""
        pid = data.draw(st.sampled_from(self.kernel.alive))
        ending = [pid]
        if pid == self.container.init.pid and self.container.private_pids:
            ending = data.draw(st.permutations(self.kernel.alive))
        for each in ending:
            self.kernel.end(each)
            if data.draw(st.booleans()):
                self.settle()
        self.settle()

    # What holds ---------------------------------------------------------------------------

    @invariant()
    def nobody_meets_a_defect(self) -> None:
        for task in self.requests:
            if task.done and task._error is not None:
                assert isinstance(task._error, EXPECTED), (task.name, task._error)

    @invariant()
    def lives_are_told_in_order(self) -> None:
        seen: dict[int, list[str]] = {}
        for topic, event in self.told:
            seen.setdefault(event.pid, []).append(topic)
        for topics in seen.values():
            exits = [topic for topic in topics if topic == "/tasks/exit"]
            assert len(exits) <= 1
            assert len(topics) - len(exits) <= 1
            assert not exits or topics[-1] == "/tasks/exit"
        pids = [event.pid for topic, event in self.told]
        init = self.container.init.pid
        if ("/tasks/exit", init) in [(topic, event.pid) for topic, event in self.told]:
            assert pids[-1] == init, "init is the last to be told of"

    @invariant()
    def nothing_that_has_ended_is_shown_as_running(self) -> None:
        gone = self.container.init.machine.phase is Phase.DELETED  # nobody can ask any more
        for process in () if gone else self.processes():
            if process.ended.done:
                assert self.container.status(process) in ("STOPPED", "PAUSED", "PAUSING")
                assert process.machine.phase not in (Phase.RUNNING, Phase.STARTING)

    @invariant()
    def all_who_wait_are_told_the_same(self) -> None:
        for process, task in self.waits:
            assert task.done == process.ended.done
            if task.done:
                assert task.result() == process.ended.result()

    def teardown(self) -> None:
        """All comes to an end: then everybody who waits has been told, and nobody is held up."""
        try:
            for _ in range(100):
                self.settle()
                for pid in list(self.kernel.alive):
                    self.kernel.end(pid)
                if self.runtime.pending:
                    self.runtime.pending.pop(0)[1].set(None)
            self.settle()
            assert all(task.done for task in self.requests), self.requests
            begun = [p for p in self.processes() if p.machine.phase is not Phase.CREATED]
            assert all(process.ended.done for process in begun)
            self.nobody_meets_a_defect()
            self.lives_are_told_in_order()
            if self.container.init.machine.phase is not Phase.DELETED:
                self.ask(self.container.delete(""), "the last delete")
                while self.runtime.pending:
                    self.runtime.pending.pop(0)[1].set(None)
                    self.settle()
                assert self.container.init.machine.phase.name == "DELETED"
            for process, task in self.waits:
                assert task.done, f"somebody waits for {process.id!r} for ever"
        finally:
            self.loop.close()
            shutil.rmtree(self.folder)


TestAnyOrder = Life.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
