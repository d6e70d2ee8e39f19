"""What the daemon knows of a task's init without asking its shim: (status, news) -> status. Pure.

The shim's own table judges; this one only says how long an answer stays true. News comes from the
answers to our requests and from the shim's events, over two connections, so in any order. Whatever
is not certain makes the status UNKNOWN, which means: ask. An end is certain and stays.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from supervisord.contracts.errors import FailedPrecondition, NotFound
from supervisord.contracts.tasks import Process, Status


class News(enum.IntEnum):
    """What has been heard."""

    STARTED = enum.auto()  # our request to start it was answered
    EXITED = enum.auto()
    DOUBT = enum.auto()  # something was done to it, or may have been


TABLE: dict[tuple[Status, News], Status] = {
    (Status.CREATED, News.STARTED): Status.RUNNING,
    (Status.CREATED, News.DOUBT): Status.UNKNOWN,
    (Status.RUNNING, News.DOUBT): Status.UNKNOWN,
    (Status.PAUSED, News.DOUBT): Status.UNKNOWN,
    (Status.UNKNOWN, News.EXITED): Status.STOPPED,
    (Status.CREATED, News.EXITED): Status.STOPPED,
    (Status.RUNNING, News.EXITED): Status.STOPPED,
    (Status.PAUSED, News.EXITED): Status.STOPPED,
}
"""News without a row changes nothing: an end stays, and late news of a start is none."""

_LASTING = frozenset((Status.CREATED, Status.RUNNING, Status.PAUSED, Status.STOPPED))


class Sight:
    """The last that is known of one init. ``heard`` counts the news."""

    __slots__ = ("_changing", "_process", "heard", "status")

    def __init__(self, process: Process | None = None) -> None:
        self._process = process
        self.status = process.status if process is not None else Status.UNKNOWN
        self.heard = 0
        self._changing = 0

    @property
    def process(self) -> Process | None:
        """The state of init; None where it must be asked for."""
        return self._process if self.status is not Status.UNKNOWN else None

    @property
    def is_changing(self) -> bool:
        """Whether a request that changes it is under way."""
        return self._changing > 0

    @property
    def expects_start(self) -> bool:
        """Whether the shim's word that it was started is no surprise: somebody is starting it, or
        it is known to have been."""
        return self.is_changing or self.status is not Status.CREATED

    def feed(self, news: News) -> None:
        """Takes news that says nothing more."""
        self.heard += 1
        self.status = TABLE.get((self.status, news), self.status)
        if self._process is not None and self._process.status is not self.status:
            self._process = replace(self._process, status=self.status)

    def ended(self, exit_status: int, exited_at: int) -> None:
        """It has exited; only the first report counts."""
        if self.status is Status.STOPPED:
            return
        self.feed(News.EXITED)
        if self._process is None:  # never seen: whoever wants more must ask
            self.status = Status.UNKNOWN
            return
        self._process = replace(self._process, exit_status=exit_status, exited_at=exited_at)

    @contextmanager
    def changing(self, done: News = News.DOUBT) -> Iterator[None]:
        """Around a request that changes the state. ``done`` is what its success tells; without an
        answer nothing is certain."""
        if done is News.DOUBT:
            self.feed(News.DOUBT)
        self._changing += 1
        try:
            yield
        except BaseException:
            self._changing -= 1
            self.feed(News.DOUBT)
            raise
        self._changing -= 1
        self.feed(done)

    @contextmanager
    def refusable(self) -> Iterator[None]:
        """Around a request that does not change the state, but may be refused because it has
        changed: whoever is told so must not see the old one afterwards."""
        try:
            yield
        except (NotFound, FailedPrecondition):
            self.feed(News.DOUBT)
            raise

    def answered(self, heard: int, process: Process) -> None:
        """The shim's answer to a question that was asked when ``heard`` was the count. An end is
        kept; another state that lasts is if nothing has been heard since. One that is not kept
        and not what is known leaves a doubt: whoever asked has seen it."""
        fresh = heard == self.heard and not self._changing and process.status in _LASTING
        if process.status is Status.STOPPED or fresh:
            if self.status is not Status.STOPPED:
                self._process = process
                self.status = process.status
        elif process.status is not self.status:
            self.feed(News.DOUBT)
