"""The life of a process as a table: (phase, event) -> (phase, effects). Pure; no I/O, no clock.

Every container has one init and any number of execs. An exit may arrive at any moment, also
while the runtime still works on the process; phases named ``*_EXITED`` remember it until the
order that clients rely on allows it to be told: nothing exits before its start was announced.
``container`` carries out the effects.
"""

from __future__ import annotations

import enum

from supervisord.contracts.errors import Error, FailedPrecondition, Internal, NotFound


class Phase(enum.IntEnum):
    """Where a process is in its life."""

    CREATED = enum.auto()
    STARTING = enum.auto()
    STARTING_EXITED = enum.auto()
    RUNNING = enum.auto()
    PAUSING = enum.auto()
    PAUSING_EXITED = enum.auto()
    PAUSED = enum.auto()
    RESUMING = enum.auto()
    RESUMING_EXITED = enum.auto()
    STOPPED = enum.auto()
    DELETING_CREATED = enum.auto()
    DELETING = enum.auto()
    DELETED = enum.auto()


class Event(enum.IntEnum):
    """What is asked of a process, and what happens to it."""

    START = enum.auto()
    STARTED = enum.auto()
    START_FAILED = enum.auto()
    PAUSE = enum.auto()
    PAUSE_DONE = enum.auto()
    PAUSE_FAILED = enum.auto()
    RESUME = enum.auto()
    RESUME_DONE = enum.auto()
    RESUME_FAILED = enum.auto()
    EXITED = enum.auto()
    DELETE = enum.auto()
    DELETE_DONE = enum.auto()
    DELETE_FAILED = enum.auto()
    KILL = enum.auto()
    EXEC = enum.auto()
    UPDATE = enum.auto()
    CHECKPOINT = enum.auto()


class Effect(enum.IntEnum):
    """What the holder of the machine has to do, in this order."""

    ANNOUNCE_START = enum.auto()
    THAW = enum.auto()  # an exited container must not stay frozen, or its cgroup cannot be removed
    ANNOUNCE_EXIT = enum.auto()
    ANNOUNCE_DELETE = enum.auto()


Row = tuple[Phase, tuple[Effect, ...]]

_P, _E, _F = Phase, Event, Effect

_COMMON: dict[tuple[Phase, Event], Row] = {
    (_P.CREATED, _E.START): (_P.STARTING, ()),
    (_P.CREATED, _E.EXITED): (_P.STOPPED, (_F.ANNOUNCE_EXIT,)),
    (_P.CREATED, _E.DELETE): (_P.DELETING_CREATED, ()),
    (_P.STARTING, _E.STARTED): (_P.RUNNING, (_F.ANNOUNCE_START,)),
    (_P.STARTING, _E.EXITED): (_P.STARTING_EXITED, ()),
    (_P.STARTING_EXITED, _E.STARTED): (_P.STOPPED, (_F.ANNOUNCE_START, _F.ANNOUNCE_EXIT)),
    (_P.STARTING_EXITED, _E.START_FAILED): (_P.STOPPED, (_F.ANNOUNCE_EXIT,)),
    (_P.RUNNING, _E.EXITED): (_P.STOPPED, (_F.ANNOUNCE_EXIT,)),
    (_P.RUNNING, _E.KILL): (_P.RUNNING, ()),
    (_P.STOPPED, _E.DELETE): (_P.DELETING, ()),
    (_P.DELETING, _E.DELETE_DONE): (_P.DELETED, (_F.ANNOUNCE_DELETE,)),
    (_P.DELETING, _E.DELETE_FAILED): (_P.STOPPED, ()),
    (_P.DELETING_CREATED, _E.DELETE_DONE): (_P.DELETED, (_F.ANNOUNCE_DELETE,)),
    (_P.DELETING_CREATED, _E.DELETE_FAILED): (_P.CREATED, ()),
    (_P.DELETING_CREATED, _E.EXITED): (_P.DELETING, (_F.ANNOUNCE_EXIT,)),
    # A process whose exit comes after its deletion has nobody left to be told.
    (_P.DELETED, _E.EXITED): (_P.DELETED, ()),
}

INIT: dict[tuple[Phase, Event], Row] = {
    **_COMMON,
    (_P.STARTING, _E.START_FAILED): (_P.CREATED, ()),
    (_P.CREATED, _E.KILL): (_P.CREATED, ()),
    (_P.STARTING, _E.KILL): (_P.STARTING, ()),
    (_P.PAUSED, _E.KILL): (_P.PAUSED, ()),
    (_P.PAUSING, _E.KILL): (_P.PAUSING, ()),
    (_P.RESUMING, _E.KILL): (_P.RESUMING, ()),
    (_P.RUNNING, _E.PAUSE): (_P.PAUSING, ()),
    (_P.PAUSING, _E.PAUSE_DONE): (_P.PAUSED, ()),
    (_P.PAUSING, _E.PAUSE_FAILED): (_P.RUNNING, ()),
    (_P.PAUSING, _E.EXITED): (_P.PAUSING_EXITED, ()),
    (_P.PAUSING_EXITED, _E.PAUSE_DONE): (_P.STOPPED, (_F.THAW, _F.ANNOUNCE_EXIT)),
    (_P.PAUSING_EXITED, _E.PAUSE_FAILED): (_P.STOPPED, (_F.ANNOUNCE_EXIT,)),
    (_P.PAUSED, _E.EXITED): (_P.STOPPED, (_F.THAW, _F.ANNOUNCE_EXIT)),
    (_P.PAUSED, _E.RESUME): (_P.RESUMING, ()),
    (_P.RESUMING, _E.RESUME_DONE): (_P.RUNNING, ()),
    (_P.RESUMING, _E.RESUME_FAILED): (_P.PAUSED, ()),
    (_P.RESUMING, _E.EXITED): (_P.RESUMING_EXITED, ()),
    (_P.RESUMING_EXITED, _E.RESUME_DONE): (_P.STOPPED, (_F.ANNOUNCE_EXIT,)),
    (_P.RESUMING_EXITED, _E.RESUME_FAILED): (_P.STOPPED, (_F.THAW, _F.ANNOUNCE_EXIT)),
    (_P.CREATED, _E.EXEC): (_P.CREATED, ()),
    (_P.RUNNING, _E.EXEC): (_P.RUNNING, ()),
    (_P.CREATED, _E.UPDATE): (_P.CREATED, ()),
    (_P.RUNNING, _E.UPDATE): (_P.RUNNING, ()),
    (_P.PAUSED, _E.UPDATE): (_P.PAUSED, ()),
    (_P.RUNNING, _E.CHECKPOINT): (_P.RUNNING, ()),
    (_P.PAUSED, _E.CHECKPOINT): (_P.PAUSED, ()),
}
"""The table of init. Starting holds for a restored checkpoint too."""

EXEC: dict[tuple[Phase, Event], Row] = {
    **_COMMON,
    # A failed exec is over: whoever waits for it must not wait for ever.
    (_P.STARTING, _E.START_FAILED): (_P.STOPPED, ()),
}
"""The table of an exec; it is paused with its container, which is not its own phase."""

REPORTS = frozenset(
    {
        Event.STARTED,
        Event.START_FAILED,
        Event.PAUSE_DONE,
        Event.PAUSE_FAILED,
        Event.RESUME_DONE,
        Event.RESUME_FAILED,
        Event.EXITED,
        Event.DELETE_DONE,
        Event.DELETE_FAILED,
    }
)
"""Events that tell what happened; in a phase without a row for one, there is a defect. The
others are requests, which are refused there."""

_EXITED = frozenset(
    {
        Phase.STARTING_EXITED,
        Phase.PAUSING_EXITED,
        Phase.RESUMING_EXITED,
        Phase.STOPPED,
        Phase.DELETING,
    }
)
_VERBS = {Event.EXEC: "exec in"}
_STATES = {
    Phase.STARTING: "starting",
    Phase.STARTING_EXITED: "stopped",
    Phase.PAUSING_EXITED: "stopped",
    Phase.RESUMING_EXITED: "stopped",
    Phase.DELETING_CREATED: "deleted",
    Phase.DELETING: "deleted",
}


def words(member: Phase | Event) -> str:
    """A phase or an event as a person reads it."""
    return member.name.replace("_", " ").lower()


def refusal(phase: Phase, event: Event, is_exec: bool) -> Error:
    """Why a request is refused in a phase."""
    if event is Event.KILL:
        if phase is Phase.DELETED:
            return NotFound("cannot kill a deleted process")
        if phase in _EXITED:
            return NotFound("process already finished")
        return FailedPrecondition("process not created")
    if phase is Phase.DELETED and event is Event.DELETE:
        return NotFound("cannot delete a deleted process")
    noun = "process" if is_exec or event in (Event.START, Event.DELETE) else "container"
    verb = _VERBS.get(event) or words(event)
    state = _STATES.get(phase) or words(phase)
    return FailedPrecondition(f"cannot {verb} a {state} {noun}")


class Machine:
    """One process's phase, with the last events for the story of a defect."""

    __slots__ = ("is_exec", "phase", "story")

    def __init__(self, *, is_exec: bool = False) -> None:
        self.is_exec = is_exec
        self.phase = Phase.CREATED
        self.story: list[str] = []

    def feed(self, event: Event) -> tuple[Effect, ...]:
        """Moves on and answers what to do.

        Raises NotFound or FailedPrecondition for a request that this phase refuses, Internal
        for a report that cannot happen in it; the phase stays then."""
        row = (EXEC if self.is_exec else INIT).get((self.phase, event))
        if row is None:
            if event in REPORTS:
                raise Internal(
                    f"{words(event)!r} while {words(self.phase)!r}, after {', '.join(self.story)}"
                )
            raise refusal(self.phase, event, self.is_exec)
        if row[0] is not self.phase:
            self.story = [*self.story[-15:], event.name]
        self.phase = row[0]
        return row[1]

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or is being deleted before it began."""
        return self.exited or self.phase is Phase.DELETING_CREATED

    @property
    def exited(self) -> bool:
        """Whether the process is known to have ended, announced or not."""
        return self.phase in _EXITED or self.phase is Phase.DELETED
