"""Events that the daemon does not take at once: kept in order, with their times, and bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.events import events_pb2
from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2
from shims import publisher as publisher_module
from shims.loop import Loop
from shims.publisher import Publisher
from shims.rpc import Server, bind
from supervisord.contracts.errors import InvalidArgument, Unavailable


class Daemon:
    """Takes events on the shim's own loop, and obeys a script of faults."""

    def __init__(self, loop: Loop, path: str) -> None:
        self.loop = loop
        self.path = path
        self.got: list[Any] = []
        self.faults: list[Exception] = []
        self._server: Server | None = None

    def open(self) -> None:
        listener = socket(AF_UNIX)
        Path(self.path).unlink(missing_ok=True)
        listener.bind(self.path)
        listener.listen()
        methods = bind(events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"], Daemon)
        self._server = Server(self.loop, listener.detach(), methods, self)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def Forward(self, request: Any) -> Empty:
        if self.faults:
            fault = self.faults.pop(0)
            if str(fault) == "taken":  # but the answer is lost
                self.got.append(request.envelope)
            raise fault
        self.got.append(request.envelope)
        return Empty()

    @property
    def pids(self) -> list[int]:
        return [
            getattr(events_pb2, envelope.event.type_url.rpartition(".")[2])
            .FromString(envelope.event.value)
            .pid
            for envelope in self.got
        ]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def daemon(loop: Loop, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(loop, str(tmp_path / "e"))
    yield daemon
    daemon.close()


@pytest.fixture
def publisher(loop: Loop, daemon: Daemon) -> Iterator[Publisher]:
    publisher = Publisher(loop, daemon.path, "ns")
    yield publisher
    publisher._hang_up()


def turn_until_taken(loop: Loop, publisher: Publisher) -> None:
    deadline = time.monotonic() + 10
    loop.later(10, lambda: None)
    while publisher.pending:
        assert time.monotonic() < deadline
        loop.turn()


def start(pid: int) -> events_pb2.TaskStart:
    return events_pb2.TaskStart(container_id="c", pid=pid)


def exit_(pid: int) -> events_pb2.TaskExit:
    return events_pb2.TaskExit(container_id="c", id="c", pid=pid)


def test_they_wait_for_the_daemon(loop: Loop, daemon: Daemon, publisher: Publisher) -> None:
    before = time.time_ns()
    for pid in range(5):
        publisher.publish("/tasks/start", start(pid))
    after = time.time_ns()
    loop.turn()
    time.sleep(0.02)
    daemon.open()
    publisher.poke()
    turn_until_taken(loop, publisher)
    assert daemon.pids == [0, 1, 2, 3, 4]
    times = [envelope.timestamp.ToNanoseconds() for envelope in daemon.got]
    assert times == sorted(times)
    assert all(before <= when <= after for when in times)


def test_a_daemon_that_is_not_ready_yet_is_tried_again_soon(
    loop: Loop, daemon: Daemon, publisher: Publisher
) -> None:
    """It connects to its shims a little before it takes events."""
    publisher._seconds = 60.0  # it has been away for long
    publisher.publish("/tasks/exit", exit_(1))
    loop.turn()
    publisher.poke()
    loop.turn()
    assert publisher.pending == 1
    daemon.open()
    turn_until_taken(loop, publisher)
    assert daemon.pids == [1]


def test_a_lost_answer_is_asked_for_again(loop: Loop, daemon: Daemon, publisher: Publisher) -> None:
    daemon.open()
    daemon.faults = [Unavailable("taken")]
    for pid in range(3):
        publisher.publish("/tasks/start", start(pid))
    turn_until_taken(loop, publisher)
    assert daemon.pids == [0, 0, 1, 2]
    assert daemon.got[0] == daemon.got[1]  # by which the daemon knows it


def test_a_refused_event_does_not_hold_up_the_others(
    loop: Loop, daemon: Daemon, publisher: Publisher
) -> None:
    daemon.open()
    daemon.faults = [InvalidArgument("no such topic")]
    for pid in range(3):
        publisher.publish("/tasks/start", start(pid))
    turn_until_taken(loop, publisher)
    assert daemon.pids == [1, 2]


def test_no_exit_is_dropped(
    loop: Loop, daemon: Daemon, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_CAPACITY", 4)
    for pid in range(6):
        publisher.publish("/tasks/start", start(pid))
        if pid % 2:
            publisher.publish("/tasks/exit", exit_(10 + pid))
    assert publisher.pending == 4
    for pid in range(20, 24):
        publisher.publish("/tasks/exit", exit_(pid))
    daemon.open()
    turn_until_taken(loop, publisher)
    assert daemon.pids == [11, 13, 15, 20, 21, 22, 23]


def test_a_full_queue_drops_the_oldest(loop: Loop, tmp_path: Path) -> None:
    publisher = Publisher(loop, str(tmp_path / "nobody"), "ns")
    for _ in range(2100):
        publisher.publish("/tasks/start", Empty())
    loop.turn()
    assert publisher.pending == 2048
    silent = Publisher(loop, "", "ns")
    silent.publish("/tasks/start", Empty())
    assert silent.pending == 0


def test_nobody_settles_with_a_daemon_that_is_away(loop: Loop, tmp_path: Path) -> None:
    publisher = Publisher(loop, str(tmp_path / "nobody"), "ns")
    loop.run_until(loop.spawn(publisher.settle(30), "settle"))  # nothing to wait for
    publisher.publish("/tasks/delete", Empty())
    loop.run_until(loop.spawn(publisher.settle(30), "settle"))  # the try that fails lets go of us
    loop.run_until(loop.spawn(publisher.settle(30), "settle"))  # and the pause after it too
    assert publisher.pending == 1


@pytest.fixture
def prompt(loop: Loop, daemon: Daemon) -> Iterator[Publisher]:
    publisher = Publisher(loop, daemon.path, "ns", prompt=True)
    yield publisher
    publisher._hang_up()


def test_at_once_is_with_the_daemon_before_anything_else_happens(
    loop: Loop, daemon: Daemon, prompt: Publisher
) -> None:
    daemon.open()
    assert not prompt.publish_at_once("/tasks/delete", start(1)), "nobody is connected yet"
    turn_until_taken(loop, prompt)
    while prompt._running:
        loop.turn()
    assert prompt.publish_at_once("/tasks/delete", start(2))
    assert prompt.pending == 1, "it is sent, not answered"
    turn_until_taken(loop, prompt)
    assert daemon.pids == [1, 2]


def test_at_once_waits_behind_earlier_ones(loop: Loop, daemon: Daemon, prompt: Publisher) -> None:
    daemon.open()
    prompt.publish("/tasks/start", start(1))
    assert not prompt.publish_at_once("/tasks/delete", start(2))
    turn_until_taken(loop, prompt)
    assert daemon.pids == [1, 2]


def test_at_once_to_a_daemon_that_has_gone(loop: Loop, daemon: Daemon, prompt: Publisher) -> None:
    daemon.open()
    prompt.publish("/tasks/start", start(1))
    turn_until_taken(loop, prompt)
    while prompt._running:
        loop.turn()
    daemon.close()
    assert not prompt.publish_at_once("/tasks/delete", start(2))
    daemon.open()
    prompt.poke()
    turn_until_taken(loop, prompt)
    assert daemon.pids == [1, 2]


def test_at_once_to_others_is_answered_first(
    loop: Loop, daemon: Daemon, publisher: Publisher
) -> None:
    daemon.open()
    publisher.publish("/tasks/start", start(1))
    turn_until_taken(loop, publisher)
    assert not publisher.publish_at_once("/tasks/delete", start(2))
    turn_until_taken(loop, publisher)
    assert daemon.pids == [1, 2]
