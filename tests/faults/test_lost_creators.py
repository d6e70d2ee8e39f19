"""``kill -9`` of the daemon when a container's creator has gone away, or is about to be answered:
the retry after the restart gets what was made, and no second container is."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from tests.conformance.daemons import alive

from .fakes import FakeRuntime
from .residue import PLUGIN
from .test_daemon_death import Mortal, mortal

__all__ = ["mortal"]  # a fixture

pytestmark = pytest.mark.only("supervisord", reason="containerd refuses to create again")

ID = "c"
SECONDS = 30


def request(mortal: Mortal, fake: FakeRuntime) -> pb.CreateTaskRequest:
    """The same each time."""
    mounts = mortal.wire.snapshots.Mounts(
        snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=ID)
    ).mounts
    return pb.CreateTaskRequest(container_id=ID, rootfs=mounts, options=fake.options())


def bundle(mortal: Mortal) -> Path:
    return mortal.daemon.state / PLUGIN / "tasks" / mortal.namespace / ID


def until_whole(mortal: Mortal) -> int:
    """Waits for the record that makes the task whole; answers the pid of init."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            pid = int(json.loads((bundle(mortal) / "shim.json").read_bytes())["init_pid"])
        except FileNotFoundError:
            pid = 0
        if pid:
            return pid
        assert time.monotonic() < deadline
        time.sleep(0.002)


def killed_behind_the_record(mortal: Mortal, fake: FakeRuntime, how: str) -> int:
    """The pid of an init whose creator has not been answered, as the daemon is dead."""
    wanted = request(mortal, fake)
    fake.tell({"create": [{"delay": 1.0}]})
    lost = mortal.wire.tasks.Create.future(wanted)
    deadline = time.monotonic() + SECONDS
    while not fake.calls("create"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if how == "cancelled":
        lost.cancel()
    pid = until_whole(mortal)
    mortal.kill()
    assert (bundle(mortal) / "unclaimed").exists() is (how == "cancelled")
    return pid


@pytest.mark.parametrize("how", ["cancelled", "cut off"])
def test_a_retry_after_the_restart(mortal: Mortal, tmp_path: Path, how: str) -> None:
    fake = FakeRuntime(tmp_path / "bin", "runc")
    mortal.wire.container(ID, parent=mortal.chain_id)
    pid = killed_behind_the_record(mortal, fake, how)
    mortal.start()
    wanted = request(mortal, fake)
    assert mortal.wire.tasks.Create(wanted).pid == pid
    assert fake.calls("create") == ["create real"]
    with mortal.wire.refused(grpc.StatusCode.ALREADY_EXISTS, ID):
        mortal.wire.tasks.Create(wanted)
    assert mortal.wire.start(ID) == pid
    mortal.restart()
    with mortal.wire.refused(grpc.StatusCode.ALREADY_EXISTS, ID):
        mortal.wire.tasks.Create(wanted)


@pytest.mark.parametrize("how", ["cancelled", "cut off"])
def test_another_request_after_the_restart(mortal: Mortal, tmp_path: Path, how: str) -> None:
    """It replaces what is known to be nobody's."""
    fake = FakeRuntime(tmp_path / "bin", "runc")
    mortal.wire.container(ID, parent=mortal.chain_id)
    pid = killed_behind_the_record(mortal, fake, how)
    mortal.start()
    other = request(mortal, fake)
    other.stdout = "file:///dev/null"
    if how == "cancelled":
        assert mortal.wire.tasks.Create(other).pid != pid
        assert not alive(pid)
    else:
        with mortal.wire.refused(grpc.StatusCode.ALREADY_EXISTS, ID):
            mortal.wire.tasks.Create(other)
        assert alive(pid)


def test_the_shim_dies_as_well(mortal: Mortal, tmp_path: Path) -> None:
    """The retry waits for the one that takes the container over."""
    fake = FakeRuntime(tmp_path / "bin", "runc")
    mortal.wire.container(ID, parent=mortal.chain_id)
    pid = killed_behind_the_record(mortal, fake, "cancelled")
    os.kill(json.loads((bundle(mortal) / "shim.json").read_bytes())["pid"], signal.SIGKILL)
    mortal.start()
    assert mortal.wire.tasks.Create(request(mortal, fake)).pid == pid
    assert mortal.wire.start(ID) == pid
