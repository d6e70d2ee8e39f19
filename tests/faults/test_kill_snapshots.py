"""The daemon is killed at its effects while a client takes a snapshot through its life, on each of
the snapshotters. What was committed is whole, what was not can be made again, and nothing is left.

As in ``test_kill_anywhere`` the effects are counted in a life without a death, and a sample of them
is taken; ``SUPERVISORD_TEST_ALL_EFFECTS=1`` has all taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.testing.mounting import mounted
from tests.conformance.wire import Wire
from tests.disks import disk

from .counted import Counted

STRIDE = 1 if os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS") else 3
NAMESPACE = "sdsnaps"
LEAST = 10

_Code = grpc.StatusCode
DONE = {_Code.ALREADY_EXISTS, _Code.NOT_FOUND}
"""What a request is answered that has been carried out already."""


class Life:
    """A client that makes, commits, looks at and removes a snapshot, whatever happens."""

    def __init__(self, daemon: Counted, name: str, place: Path) -> None:
        self.daemon = daemon
        self.name = name
        self.place = place
        self.deaths = 0
        self.last = ""
        self.wire = Wire(daemon.address, NAMESPACE, lease="lease", ours=True)

    @property
    def folders(self) -> list[str]:
        """What the snapshotter keeps."""
        plugin = self.daemon.root / f"io.containerd.snapshotter.v1.{self.name}"
        return sorted(os.listdir(plugin / "snapshots"))

    def request(self, call: Callable[[Wire], Any], done: Set[grpc.StatusCode] = DONE) -> Any:
        """Makes a request until it is answered; None where it turns out to have been done."""
        deaths = self.deaths
        while True:
            try:
                return call(self.wire)
            except grpc.RpcError as error:
                if error.code() in done and self.deaths > deaths:
                    return None
                if error.code() is not _Code.UNAVAILABLE or not self.restarted():
                    raise

    def restarted(self) -> bool:
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
        self.wire = Wire(self.daemon.address, NAMESPACE, lease="lease", ours=True)
        return True

    def layer(self, key: str, name: str, parent: str) -> None:
        """A committed snapshot with a file of its name."""
        prepare = pb.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        self.request(lambda wire: wire.snapshots.Prepare(prepare))
        asked = pb.MountsRequest(snapshotter=self.name, key=key)
        found = self.request(lambda wire: wire.snapshots.Mounts(asked), set())
        with mounted(found.mounts, self.place) as root:
            (root / name).write_text(name)
        commit = pb.CommitSnapshotRequest(snapshotter=self.name, key=key, name=name)
        self.request(lambda wire: wire.snapshots.Commit(commit))

    def run(self) -> None:
        """The whole life. Asserts what clients rely on, at each step."""
        self.layer("key", "name", "base")
        view = pb.ViewSnapshotRequest(snapshotter=self.name, key="view", parent="name")
        self.request(lambda wire: wire.snapshots.View(view))
        asked = pb.MountsRequest(snapshotter=self.name, key="view")
        found = self.request(lambda wire: wire.snapshots.Mounts(asked), set())
        with mounted(found.mounts, self.place) as root:
            assert sorted(os.listdir(root)) == ["base", "name"]
            assert (root / "name").read_text() == "name"
        for key in ("view", "name"):
            self.request(partial(self._remove, key=key))

    def _remove(self, wire: Wire, key: str) -> None:
        wire.snapshots.Remove(pb.RemoveSnapshotRequest(snapshotter=self.name, key=key))

    def settle(self) -> None:
        """Until all that was removed is gone."""
        cleanup = pb.CleanupRequest(snapshotter=self.name)
        self.request(lambda wire: wire.snapshots.Cleanup(cleanup), set())

    def names(self) -> list[str]:
        """What clients see."""
        asked = pb.ListSnapshotsRequest(snapshotter=self.name)
        pages = self.request(lambda wire: list(wire.snapshots.List(asked)), set())
        return [info.name for page in pages for info in page.info]


@pytest.fixture(params=["btrfs", "erofs", "native", "overlayfs"])
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    kind = "btrfs" if request.param == "btrfs" else "ext4"
    with disk(tmp_path / "disk", kind) as volume:
        daemon = Counted()
        daemon.root = volume / "root"
        try:
            daemon.start(timeout=60)
            one = Life(daemon, request.param, tmp_path / "mnt")
            try:
                one.wire.leases.Create(leases_pb2.CreateRequest(id="lease"))
                one.layer("base-key", "base", "")
                one.run()  # what happens once only is not counted
                yield one
            finally:
                one.wire.close()
        finally:
            daemon.close()


@pytest.mark.timeout(600)  # for all effects, on a busy machine
def test_nothing_is_lost_or_left(life: Life) -> None:
    life.settle()
    before = life.folders
    life.daemon.order("daemon", -1)
    life.run()
    life.settle()
    count = life.daemon.count("daemon")
    assert count > LEAST, life.daemon.effects()
    assert life.folders == before
    wrong: list[str] = []
    for number in range(1, count + 1, STRIDE):
        life.daemon.order("daemon", number)
        try:
            life.run()
            life.daemon.order("daemon", 0)
            assert life.names() == ["base"]
            life.settle()
            assert life.folders == before
        except (AssertionError, grpc.RpcError, OSError) as error:
            wrong.append(f"at {number}, {life.last}: {error!r}")
            break
    assert not wrong, "\n".join(wrong)
    assert life.deaths > count // STRIDE * 0.7
