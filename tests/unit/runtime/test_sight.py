"""What is known without asking is never older than what has been told, in any order of news."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisord.contracts.tasks import Process, Status, Stdio
from supervisord.runtime.sight import TABLE, News, Sight

MADE = Process("c", "", 7, Status.CREATED, Stdio())
MOVES = {
    "start": (Status.CREATED, Status.RUNNING),
    "pause": (Status.RUNNING, Status.PAUSED),
    "resume": (Status.PAUSED, Status.RUNNING),
}


class Refused(Exception):
    """The shim's answer to a request that its state forbids."""


@dataclass
class Request:
    """One request to the shim: who asked (None when they have gone), what it needs to end."""

    verb: str
    caller: AbstractContextManager[None] | None = None
    heard: int = 0


class Shim(RuleBasedStateMachine):
    """A shim that handles requests in any order, answers on one wire and tells on another, each
    in order; init may exit at any moment. ``history`` is the truth, ``told`` its newest entry that
    anybody has been told of."""

    def __init__(self) -> None:
        super().__init__()
        self.sight = Sight(MADE)
        self.history = [Status.CREATED]
        self.asked: list[Request] = []
        self.answers: list[tuple[Request, int, Status | None]] = []
        self.events: list[tuple[str, int]] = []
        self.told = 0

    # What clients do ----------------------------------------------------------------------

    @rule(verb=st.sampled_from(sorted(MOVES)))
    def ask(self, verb: str) -> None:
        caller = self.sight.changing(News.STARTED if verb == "start" else News.DOUBT)
        caller.__enter__()
        self.asked.append(Request(verb, caller))

    @rule()
    def look(self) -> None:
        self.asked.append(Request("state", heard=self.sight.heard))

    @precondition(lambda self: any(request.caller for request in self.asked))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([r for r in self.asked if r.caller]))
        assert request.caller is not None
        with contextlib.suppress(TimeoutError):
            request.caller.__exit__(TimeoutError, TimeoutError(), None)
        request.caller = None

    # What the shim does -------------------------------------------------------------------

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def handle(self, data: st.DataObject) -> None:
        request = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        now = self.history[-1]
        if request.verb == "state":
            self.answers.append((request, len(self.history) - 1, now))
            return
        before, after = MOVES[request.verb]
        if now is not before:
            self.answers.append((request, len(self.history) - 1, None))
            return
        self.history.append(after)
        self.events.append((request.verb, len(self.history) - 1))
        self.answers.append((request, len(self.history) - 1, after))

    @precondition(lambda self: self.history[-1] is not Status.STOPPED)
    @rule()
    def exit(self) -> None:
        self.history.append(Status.STOPPED)
        self.events.append(("exit", len(self.history) - 1))

    # What arrives -------------------------------------------------------------------------

    @precondition(lambda self: self.answers)
    @rule()
    def hear_answer(self) -> None:
        request, at, status = self.answers.pop(0)
        if request.verb == "state":
            assert status is not None
            self.sight.answered(request.heard, replace(MADE, status=status))
        elif request.caller is not None:
            if status is None:
                with contextlib.suppress(Refused):
                    request.caller.__exit__(Refused, Refused(), None)
            else:
                request.caller.__exit__(None, None, None)
        else:
            return  # nobody is told
        self.told = max(self.told, at)

    @precondition(lambda self: self.events)
    @rule()
    def hear_event(self) -> None:
        verb, at = self.events.pop(0)
        if verb == "exit":
            self.sight.ended(137, 5)
        else:
            begun = verb == "start" and self.sight.expects_start
            self.sight.feed(News.STARTED if begun else News.DOUBT)
        self.told = max(self.told, at)

    # What holds ---------------------------------------------------------------------------

    @invariant()
    def nothing_old_is_claimed(self) -> None:
        known = self.sight.process
        if known is not None:
            assert known.status in self.history[self.told :]
            assert known.status is self.sight.status
            assert (known.exit_status == 137) <= (known.status is Status.STOPPED)

    @invariant()
    def when_all_is_told_what_is_known_is_true(self) -> None:
        if not (self.asked or self.answers or self.events):
            assert self.sight.status in (Status.UNKNOWN, self.history[-1])


TestAnyOrderOfNews = Shim.TestCase
TestAnyOrderOfNews.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_an_end_stays() -> None:
    for status in Status:
        assert (Status.STOPPED, News.DOUBT) not in TABLE
        if status not in (Status.STOPPED, Status.PAUSING):
            assert TABLE[status, News.EXITED] is Status.STOPPED


def test_a_usual_life_needs_no_question() -> None:
    sight = Sight(MADE)
    with sight.changing(News.STARTED):
        assert sight.process == MADE
    assert sight.process == replace(MADE, status=Status.RUNNING)
    sight.ended(3, 99)
    sight.ended(137, 100)
    assert sight.process == replace(MADE, status=Status.STOPPED, exit_status=3, exited_at=99)


def test_the_first_report_of_an_end_that_nobody_saw_alive_is_asked_about() -> None:
    sight = Sight()
    sight.ended(1, 2)
    assert sight.process is None
    sight.answered(sight.heard, replace(MADE, status=Status.STOPPED, exit_status=1, exited_at=2))
    assert sight.process is not None


@pytest.mark.parametrize("status", [Status.PAUSING, Status.UNKNOWN])
def test_what_does_not_last_is_not_kept(status: Status) -> None:
    sight = Sight()
    sight.answered(sight.heard, replace(MADE, status=status))
    assert sight.process is None
