"""The daemon is killed at its effects while a client activates mounts and gives them back. After
the restart either all of an activation is there or nothing, and at the end nothing is left.

As in ``test_kill_anywhere`` the effects are counted in a life without a death, and a sample of them
is taken; ``SUPERVISORD_TEST_ALL_EFFECTS=1`` has all taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.mounts.v1 import mounts_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.linux.mount import mount_points
from tests.conformance.wire import Wire
from tests.disks import command, devices_of

from .counted import Counted

STRIDE = 1 if os.environ.get("SUPERVISORD_TEST_ALL_EFFECTS") else 4
NAMESPACE = "sdmounts"
LEAST = 20


class Life:
    """A client that has mounts made and taken away, however often the daemon dies."""

    def __init__(self, daemon: Counted, layer: Path) -> None:
        self.daemon = daemon
        self.disk = daemon.root / "disk.img"
        self.deaths = 0
        self.last = ""
        self.mounts = [
            types_pb2.Mount(type="erofs", source=str(layer), options=["ro", "loop"]),
            types_pb2.Mount(
                type="mkfs/loop", source=str(self.disk), options=["X-containerd.mkfs.size=1MiB"]
            ),
            types_pb2.Mount(type="format/ext4", source="{{ mount 1 }}"),
            types_pb2.Mount(
                type="format/mkdir/overlay",
                source="overlay",
                options=[
                    "X-containerd.mkdir.path={{ mount 2 }}/up:0755",
                    "X-containerd.mkdir.path={{ mount 2 }}/work:0755",
                    "upperdir={{ mount 2 }}/up",
                    "workdir={{ mount 2 }}/work",
                    "lowerdir={{ mount 0 }}",
                ],
            ),
        ]
        self.wire = Wire(daemon.address, NAMESPACE, lease="lease", ours=True)

    def request(self, call: Callable[[Wire], Any], done: grpc.StatusCode) -> Any:
        """Makes a request until it is answered; None where it turns out to have been done."""
        deaths = self.deaths
        while True:
            try:
                return call(self.wire)
            except grpc.RpcError as error:
                if error.code() is done and self.deaths > deaths:
                    return None
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not self.restarted():
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

    def run(self) -> None:
        """An activation, looked at, and given back."""
        asked = pb.ActivateRequest(name="one", mounts=self.mounts)
        self.request(lambda wire: wire.mounts.Activate(asked), grpc.StatusCode.ALREADY_EXISTS)
        info = pb.InfoRequest(name="one")
        found = self.request(lambda wire: wire.mounts.Info(info), grpc.StatusCode.OK).info
        assert [each.mount.type for each in found.active] == ["erofs", "loop", "ext4"]
        assert (Path(found.active[0].mount_point) / "file").exists()
        assert Path(dict(o.split("=") for o in found.system[0].options)["upperdir"]).is_dir()
        assert len(devices_of(self.disk)) == 1
        back = pb.DeactivateRequest(name="one")
        self.request(lambda wire: wire.mounts.Deactivate(back), grpc.StatusCode.NOT_FOUND)

    def expect_nothing(self) -> None:
        """No mount, device, half of a file or record."""
        listed = self.request(lambda wire: list(wire.mounts.List(pb.ListRequest())), _NONE)
        assert listed == []
        targets = next(self.daemon.state.glob("*mount-manager*/t"))
        assert os.listdir(targets) == []
        assert not [point for point in mount_points() if point.startswith(str(targets))]
        assert devices_of(self.disk) == []


_NONE = grpc.StatusCode.OK


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    layer = tmp_path / "erofs.img"
    command(["mkfs.erofs", "--quiet", str(layer), str(tmp_path / "tree")])
    daemon = Counted()
    try:
        daemon.start(timeout=60)
        one = Life(daemon, layer)
        try:
            one.wire.leases.Create(leases_pb2.CreateRequest(id="lease"))
            one.run()  # what happens once only is not counted
            yield one
        finally:
            one.wire.close()
    finally:
        daemon.close()
        for device in devices_of(daemon.root / "disk.img"):
            command(["losetup", "-d", f"/dev/{device}"])


@pytest.mark.timeout(600)  # for all effects, on a busy machine
def test_all_or_nothing(life: Life) -> None:
    life.disk.unlink()
    life.daemon.order("daemon", -1)
    life.run()
    life.expect_nothing()
    count = life.daemon.count("daemon")
    assert count > LEAST, life.daemon.effects()
    wrong: list[str] = []
    for number in range(1, count + 1, STRIDE):
        life.disk.unlink(missing_ok=True)
        life.daemon.order("daemon", number)
        try:
            life.run()
            life.daemon.order("daemon", 0)
            life.expect_nothing()
        except (AssertionError, grpc.RpcError, StopIteration) as error:
            wrong.append(f"at {number}, {life.last}: {error!r}")
            break
    assert not wrong, "\n".join(wrong)
    assert life.deaths > count // STRIDE * 0.8
    life.disk.unlink(missing_ok=True)
    life.run()  # takes what earlier ones have left of the file
    assert [path.name for path in life.disk.parent.glob(".disk.img*")] == []
