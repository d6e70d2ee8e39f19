"""The life-cycle table: random orders of events, and the rows that clients rely on."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.loop import Loop
from shims.machine import (
    EXEC,
    INIT,
    REPORTS,
    Effect,
    Event,
    Machine,
    Phase,
    refusal,
)
from shims.process import Process
from shims.stdio import Stdio, Wishes
from supervisord.contracts.errors import Error, FailedPrecondition, Internal, NotFound

ASKED = {
    Event.START: (Event.STARTED, Event.START_FAILED),
    Event.PAUSE: (Event.PAUSE_DONE, Event.PAUSE_FAILED),
    Event.RESUME: (Event.RESUME_DONE, Event.RESUME_FAILED),
    Event.DELETE: (Event.DELETE_DONE, Event.DELETE_FAILED),
}
REQUESTS = [event for event in Event if event not in REPORTS]


class World:
    """What surrounds a machine: a process that ends once, a runtime that answers what it was
    asked, and a log of what clients were told."""

    def __init__(self, is_exec: bool) -> None:
        self.machine = Machine(is_exec=is_exec)
        self.asked: Event | None = None
        self.gone = False
        self.told: list[Effect] = []

    def choices(self) -> list[Event]:
        # While a request is carried out, nobody but a killer gets in: a lock is held.
        events = REQUESTS if self.asked is None else [*ASKED[self.asked], Event.KILL]
        events = list(events)
        started = self.machine.phase is not Phase.CREATED or not self.machine.is_exec
        if not self.gone and (started or self.asked is Event.START):
            events.append(Event.EXITED)
        return events

    def feed(self, event: Event) -> None:
        try:
            effects = self.machine.feed(event)
        except Internal:
            raise
        except (FailedPrecondition, NotFound):
            assert event not in REPORTS
            return
        if event is Event.EXITED or (self.machine.is_exec and event is Event.START_FAILED):
            self.gone = True
        if event in ASKED:
            self.asked = event
        elif self.asked is not None and event in ASKED[self.asked]:
            self.asked = None
        self.told += effects
        self.check()

    def check(self) -> None:
        told = self.told
        for effect in (Effect.ANNOUNCE_START, Effect.ANNOUNCE_EXIT, Effect.ANNOUNCE_DELETE):
            assert told.count(effect) <= 1
        if Effect.ANNOUNCE_START in told and Effect.ANNOUNCE_EXIT in told:
            assert told.index(Effect.ANNOUNCE_START) < told.index(Effect.ANNOUNCE_EXIT)
        if Effect.ANNOUNCE_DELETE in told:
            assert told[-1] is Effect.ANNOUNCE_DELETE
            assert self.machine.phase is Phase.DELETED
        if self.machine.phase in (Phase.RUNNING, Phase.PAUSED):
            assert not self.gone
        if self.gone and self.asked is None and self.machine.phase is not Phase.DELETED:
            assert self.machine.phase is Phase.STOPPED
            assert Effect.ANNOUNCE_EXIT in told or self.machine.is_exec
        assert self.machine.exited or not self.gone


@given(st.booleans(), st.data())
def test_any_order_of_events_keeps_the_promises(is_exec: bool, data: st.DataObject) -> None:
    world = World(is_exec)
    for _ in range(data.draw(st.integers(1, 40))):
        world.feed(data.draw(st.sampled_from(world.choices())))


@given(st.booleans(), st.lists(st.sampled_from(list(Event)), max_size=30))
def test_no_event_is_without_an_answer(is_exec: bool, events: list[Event]) -> None:
    machine = Machine(is_exec=is_exec)
    for event in events:
        before = machine.phase
        try:
            machine.feed(event)
        except Internal as error:
            assert event in REPORTS
            assert machine.phase is before
            assert "while" in error.message
        except Error:
            assert event not in REPORTS
            assert machine.phase is before


def test_an_exit_before_start_returns_waits_for_the_start() -> None:
    machine = Machine()
    machine.feed(Event.START)
    assert machine.feed(Event.EXITED) == ()
    assert machine.feed(Event.STARTED) == (Effect.ANNOUNCE_START, Effect.ANNOUNCE_EXIT)
    assert machine.phase is Phase.STOPPED


def test_an_exit_while_paused_thaws_first() -> None:
    machine = Machine()
    for event in (Event.START, Event.STARTED, Event.PAUSE, Event.PAUSE_DONE):
        machine.feed(event)
    assert machine.feed(Event.EXITED) == (Effect.THAW, Effect.ANNOUNCE_EXIT)


def test_a_failed_start_leaves_init_created_and_ends_an_exec() -> None:
    for is_exec, phase in ((False, Phase.CREATED), (True, Phase.STOPPED)):
        machine = Machine(is_exec=is_exec)
        machine.feed(Event.START)
        machine.feed(Event.START_FAILED)
        assert machine.phase is phase


@pytest.mark.parametrize(
    ("phase", "event", "kind", "message"),
    [
        (Phase.RUNNING, Event.DELETE, FailedPrecondition, "cannot delete a running process"),
        (Phase.PAUSED, Event.DELETE, FailedPrecondition, "cannot delete a paused process"),
        (Phase.STOPPED, Event.KILL, NotFound, "process already finished"),
        (Phase.STARTING_EXITED, Event.KILL, NotFound, "process already finished"),
        (Phase.DELETED, Event.KILL, NotFound, "cannot kill a deleted process"),
        (Phase.DELETED, Event.DELETE, NotFound, "cannot delete a deleted process"),
        (Phase.STOPPED, Event.EXEC, FailedPrecondition, "cannot exec in a stopped container"),
        (Phase.CREATED, Event.CHECKPOINT, FailedPrecondition, "checkpoint a created container"),
    ],
)
def test_refusals(phase: Phase, event: Event, kind: type[Error], message: str) -> None:
    error = refusal(phase, event, is_exec=False)
    assert isinstance(error, kind)
    assert message in error.message


def test_an_exec_that_was_not_started_cannot_be_killed() -> None:
    with pytest.raises(FailedPrecondition, match="process not created"):
        Machine(is_exec=True).feed(Event.KILL)


def test_every_phase_can_be_reached_and_left() -> None:
    for table in (INIT, EXEC):
        reached = {Phase.CREATED} | {row[0] for row in table.values()}
        left = {phase for (phase, _), row in table.items() if row[0] is not phase}
        used = {phase for phase, _ in table}
        assert used <= reached
        assert reached - left <= {Phase.DELETED}


def test_the_story_is_short() -> None:
    machine = Machine()
    machine.feed(Event.START)
    machine.feed(Event.STARTED)
    for _ in range(20):
        machine.feed(Event.PAUSE)
        with contextlib.suppress(FailedPrecondition):
            machine.feed(Event.START)
        machine.feed(Event.PAUSE_FAILED)
    assert len(machine.story) <= 16
    with pytest.raises(Internal, match=r"'resume done' while 'running', after .*PAUSE_FAILED"):
        machine.feed(Event.RESUME_DONE)


def test_what_has_no_pid_yet_takes_no_signal() -> None:
    """A container that is to be restored: a signal to pid 0 would be one to the shim."""
    loop = Loop()
    try:
        stdio = Stdio(loop, None, Wishes("", "", "", False))  # type: ignore[arg-type]
        process = Process(loop, "", Wishes("", "", "", False), stdio, is_exec=False)
        with pytest.raises(FailedPrecondition, match="process not created"):
            process.signal(0)
    finally:
        loop.close()
