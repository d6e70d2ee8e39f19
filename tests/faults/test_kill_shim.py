"""The shim is killed at its effects, one in each life of a container, while a client takes that
through its life. A request ends with success or an error; what failed has left nothing and can be
made again; a container goes on with another shim, or its end is told; and at the end nothing is
left.

The effects are found by counting them (``programs/effects.py``). A sample is taken by default;
``SUPERVISORD_TEST_ALL_EFFECTS=1`` has all taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.v1.types import task_pb2
from tests.conformance.ocitar import Image
from tests.conformance.wire import Recorder

from .residue import Residue
from .test_kill_anywhere import ID, SCRIPT, Life, living

STRIDE = 1 if os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS") else 5
LEAST = 50
"""Fewer effects than that in a life mean that they are not counted."""

UNSEEN = {42, 137, 255}
"""Statuses of what ended without a shim that saw it; 42 is what the kernel or a record tells."""

_GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


class Passage:
    """One life of a container whose shim may die once. ``told`` are the errors that came."""

    def __init__(self, life: Life, residue: Residue, recorder: Recorder) -> None:
        self._life = life
        self._wire = life.wire
        self._residue = residue
        self._recorder = recorder
        self.told: list[str] = []

    def _try(self, call: Callable[[], Any]) -> bool:
        """Whether a request succeeded. Its error must come from the death: there is only one."""
        try:
            call()
        except grpc.RpcError as error:
            assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, error.details()
            self.told.append(f"{error.code().name} {error.details()}")
            return False
        return True

    def _status(self) -> Any:
        """The status of the task; None where it is gone."""
        deadline = time.monotonic() + 20
        while True:
            task = self._wire.tasks_by_id().get(ID)
            if task is None or task.status != task_pb2.UNKNOWN:
                return None if task is None else task.status
            assert time.monotonic() < deadline, "the status stays unknown"
            time.sleep(0.02)

    def run(self) -> None:
        """The life, on a container that is there."""
        wire = self._wire
        if not self._try(lambda: wire.create_task(ID)):
            assert wire.tasks_by_id() == {}
            self._residue.expect_none(ID)
            wire.create_task(ID)
        pid = wire.tasks_by_id()[ID].pid
        if not self._try(lambda: wire.start(ID)) and self._status() == task_pb2.CREATED:
            wire.start(ID)
        if self._status() == task_pb2.RUNNING:
            self._exec("e")
            self._life.until_ready()
        ended = self._end()
        if not self._try(lambda: wire.delete_task(ID)) and self._status() is not None:
            wire.delete_task(ID)
        assert self._status() is None
        (exit,) = self._exits(ID)
        assert exit.pid == pid
        assert exit.exit_status in (UNSEEN if ended is None else {ended}), self.told

    def _exec(self, id: str) -> None:
        """Once more under another id where it failed, as long as the container is there."""
        wire = self._wire
        request = pb.DeleteProcessRequest(container_id=ID, exec_id=id)
        done = self._try(lambda: wire.exec(ID, id, ["sh", "-c", "exit 7"]))
        done = done and self._try(lambda: wire.start(ID, id))
        if done:
            assert wire.wait(ID, id) in {7, *UNSEEN}
            self._try(lambda: wire.tasks.DeleteProcess(request))
        elif self._status() == task_pb2.RUNNING:
            assert id == "e", self.told
            self._exec("f")

    def _end(self) -> int | None:
        """Ends the container; its exit status. None where it is gone."""
        wire = self._wire
        try:
            if not self._try(lambda: wire.kill(ID, 15)) and self._status() == task_pb2.RUNNING:
                wire.kill(ID, 15)
            return wire.wait(ID)
        except grpc.RpcError as error:
            assert error.code() in _GONE, error.details()
            return None

    def _exits(self, id: str) -> list[Any]:
        """The exit events of a process; waits for the first."""
        deadline = time.monotonic() + 10
        while True:
            exits = [exit for exit in self._recorder.expect("/tasks/exit") if exit.id == id]
            if exits or time.monotonic() > deadline:
                return exits
            time.sleep(0.02)


def sample(effects: list[str]) -> list[int]:
    """The numbers of the effects at which the shim is ended: all until init is let go."""
    names = [name for name in effects if name.startswith("shim ")]
    begun = next(at for at, name in enumerate(names, 1) if name.endswith("exec.fifo"))
    return [at for at in range(1, len(names) + 1) if at <= begun + 1 or at % STRIDE == 0]


@pytest.mark.timeout(300)  # for all effects, on a busy machine
def test_the_shim(image: Image, image_tar: Path) -> None:
    with living(image, image_tar) as life:
        residue = Residue(life.daemon, life.namespace)
        life.wire.container_record(ID, ("sh", "-c", SCRIPT))
        life.wire.prepare(ID, life.chain_id)

        def pass_through(number: int) -> list[str]:
            """A life with a death at that effect; answers what there was."""
            life.daemon.order("shim", number)
            with life.wire.record() as recorder:
                Passage(life, residue, recorder).run()
            effects = life.daemon.effects()
            life.daemon.order("shim", 0)
            residue.expect_none(ID)
            return effects

        effects = pass_through(-1)
        assert len(effects) > LEAST, effects
        wrong: list[str] = []
        for number in sample(effects):
            try:
                pass_through(number)
            except (AssertionError, grpc.RpcError) as error:
                at = [name for name in life.daemon.effects() if name.startswith("shim ")]
                wrong.append(f"shim at {number}, {at[number - 1 : number]}: {error!r}")
                break
        assert not wrong, "\n".join(wrong)
