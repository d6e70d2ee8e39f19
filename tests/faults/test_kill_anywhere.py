"""The daemon is killed at each of its effects in turn, while a client takes a container through its
life. Whatever it was doing: after the restart the client's request either has been carried out
whole or can be made again, the exit is not lost, and at the end nothing is left.

The effects are found by counting them in a life without a death (``programs/effects.py``). All of
create and start are taken, and a sample of the others; ``SUPERVISORD_TEST_ALL_EFFECTS=1`` has all
taken.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from tests.conformance import sweep
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import remove_cgroups
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire

from .counted import Counted
from .residue import PLUGIN, Residue

WORKERS = 2
ID = "c"
SCRIPT = "trap 'exit 42' TERM; : > /ready; while :; do sleep 0.02; done"

_Code = grpc.StatusCode
STRIDE = 1 if os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS") else 4
CREATE, STARTED = "Tasks/Create begins", "Tasks/Start is answered"
LEAST = {"daemon": 100, "zygote": 1}
"""Fewer effects than that in a life mean that they are not counted."""

DONE = {_Code.ALREADY_EXISTS, _Code.FAILED_PRECONDITION, _Code.NOT_FOUND}
"""What a request is answered that has been carried out already."""


class Life:
    """A client that takes one container through its life, however often the daemon dies."""

    def __init__(self, daemon: Counted, chain_id: str) -> None:
        self.daemon = daemon
        self.namespace = f"sdkill-{uuid.uuid4().hex[:8]}"
        self.chain_id = chain_id
        self.wire = Wire(daemon.address, self.namespace, ours=True)
        self.deaths = 0
        self.last = ""

    def request(self, call: Callable[[Wire], Any], *, done: Set[grpc.StatusCode] = DONE) -> Any:
        """Makes a request until it is answered. None where it turns out to have been carried out
        before the daemon died: then the answer is one of ``done``."""
        deaths = self.deaths
        while True:
            try:
                return call(self.wire)
            except grpc.RpcError as error:
                if error.code() in done and self.deaths > deaths:
                    return None
                if error.code() is not _Code.UNAVAILABLE or not self._restarted():
                    raise

    def _restarted(self) -> bool:
        """Whether the daemon had died; it serves again then."""
        assert self.daemon.process is not None
        with contextlib.suppress(Exception):
            self.daemon.process.wait(2)
        if self.daemon.process.poll() is None:
            return False
        self.deaths += 1
        self.last = (self.daemon.effects() or ["behind the last answer"])[-1]
        self.daemon.order("daemon", 0)
        self.wire.close()
        self.daemon.start(timeout=60)
        self.wire = Wire(self.daemon.address, self.namespace, ours=True)
        return True

    def run(self) -> None:
        """The whole life. Asserts what clients rely on, at each step."""
        self.request(lambda wire: wire.container_record(ID, ("sh", "-c", SCRIPT)))
        self.request(lambda wire: wire.prepare(ID, self.chain_id))
        pid = self.request(lambda wire: wire.create_task(ID), done=set())
        assert self.request(lambda wire: wire.tasks_by_id())[ID].pid == pid
        assert self.request(lambda wire: wire.start(ID)) in (None, pid)
        self._exec()
        self.until_ready()
        self.request(lambda wire: wire.kill(ID, 15))
        assert self.request(lambda wire: wire.wait(ID)) == 42
        (task,) = self.request(lambda wire: wire.tasks_by_id()).values()
        assert (task.pid, task.exit_status) == (pid, 42)
        assert self.request(lambda wire: wire.delete_task(ID)) in (None, 42)
        assert self.request(lambda wire: wire.tasks_by_id()) == {}
        record = containers_pb2.DeleteContainerRequest(id=ID)
        self.request(lambda wire: wire.containers.Delete(record))
        snapshot = snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=ID)
        self.request(lambda wire: wire.snapshots.Remove(snapshot))

    def _exec(self) -> None:
        self.request(lambda wire: wire.exec(ID, "e", ["sh", "-c", "exit 7"]))
        self.request(lambda wire: wire.start(ID, "e"))
        assert self.request(lambda wire: wire.wait(ID, "e")) == 7
        request = pb.DeleteProcessRequest(container_id=ID, exec_id="e")
        ended = self.request(lambda wire: wire.tasks.DeleteProcess(request))
        assert ended is None or ended.exit_status == 7

    def until_ready(self) -> None:
        """Until the trap of the script is set."""
        deadline = time.monotonic() + 20
        root = self.daemon.state / PLUGIN / "tasks" / self.namespace / ID / "rootfs"
        while not (root / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        self.wire.close()
        remove_cgroups(f"/{self.namespace}")


@contextlib.contextmanager
def living(image: Image, image_tar: Path) -> Iterator[Life]:
    """A counted daemon with the image unpacked, and its client."""
    daemon = Counted()
    life = Life(daemon, image.chain_ids[-1])
    try:
        daemon.start(timeout=60)
        Ctr(daemon.address, life.namespace)("i", "import", str(image_tar))
        life.run()  # what happens once only is not counted
        yield life
        sweep.namespace(life.wire)
    finally:
        life.close()
        daemon.close()


def sample(kind: str, effects: list[str]) -> list[int]:
    """The numbers of the effects at which the kind is ended."""
    names = [name for name in effects if name.startswith(f"{kind} ")]
    dense = range(1, len(names) + 1)
    if kind == "daemon":
        first, last = (
            next(number for number, name in enumerate(names, 1) if name.endswith(sign))
            for sign in (CREATE, STARTED)
        )
        dense = range(first, last + 1)
    return [at for at in range(1, len(names) + 1) if at in dense or at % STRIDE == 0]


def lives(life: Life, kind: str, worker: int = 0, workers: int = 1) -> list[str]:
    """Lives with one death each, at the worker's share of the effects of one life; answers what
    went wrong."""
    residue = Residue(life.daemon, life.namespace)
    life.daemon.order(kind, -1)
    life.run()
    count = life.daemon.count(kind)
    names = life.daemon.effects()
    assert count > LEAST[kind], names
    wrong: list[str] = []
    orders, deaths = 0, life.deaths
    for number in sample(kind, names)[worker::workers]:
        orders += 1
        life.daemon.order(kind, number)
        try:
            life.run()
            life.daemon.order(kind, 0)
            life.request(lambda wire: wire.tasks_by_id())  # it may have died behind its answer
            residue.expect_none(ID)
        except (AssertionError, grpc.RpcError) as error:
            wrong.append(f"{kind} at {number}, {life.last}: {error!r}")
            break
    if kind == "daemon":  # what the last ones are before is done behind the last answer
        assert wrong or life.deaths - deaths > orders * 0.8
    return wrong


def shared(image: Image, image_tar: Path, kind: str) -> None:
    """Lives on several daemons at a time; each takes its share of the effects."""

    def share(worker: int) -> list[str]:
        with living(image, image_tar) as life:
            return lives(life, kind, worker, WORKERS)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        wrong = [line for lines in pool.map(share, range(WORKERS)) for line in lines]
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(600)  # for all effects, on a busy machine
def test_the_daemon(image: Image, image_tar: Path) -> None:
    shared(image, image_tar, "daemon")


def test_the_zygote(image: Image, image_tar: Path) -> None:
    """Nobody notices, not even the client whose shim it was about to fork."""
    with living(image, image_tar) as life:
        wrong = lives(life, "zygote")
        assert not wrong, "\n".join(wrong)
        assert life.deaths == 0
