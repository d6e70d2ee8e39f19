"""The Mounts service over the wire, and containers whose snapshots need it.

Debian's containerd has no such service: what is expected here is what containerd 2.2 does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.services.mounts.v1 import mounts_pb2 as pb
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from protos.containerd.types import types_pb2
from supervisord.linux.mount import mounted
from tests.conformance.daemons import Daemon, Supervisord, remove_cgroups
from tests.conformance.fixtures import IMAGE
from tests.conformance.wire import SPEC_URL, Wire
from tests.disks import command
from tests.e2e.conftest import Sctl

pytestmark = pytest.mark.only("supervisord", "containerd 1.6 has no Mounts service")

DESCRIBED = """
[plugins."io.containerd.snapshotter.v1.erofs"]
mount_layers = false
"""
LIMITED = """
[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "16MiB"
"""


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """An image of erofs with one file."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("in an image")
    command(["mkfs.erofs", "--quiet", str(tmp_path / "erofs.img"), str(tmp_path / "tree")])
    return tmp_path / "erofs.img"


def erofs(layer: Path) -> types_pb2.Mount:
    return types_pb2.Mount(type="erofs", source=str(layer), options=["ro", "loop"])


def activate(
    wire: Wire,
    name: str,
    mounts: list[types_pb2.Mount],
    labels: dict[str, str] | None = None,
    temporary: bool = False,
) -> types_pb2.ActivationInfo:
    request = pb.ActivateRequest(name=name, mounts=mounts, labels=labels or {}, temporary=temporary)
    return wire.mounts.Activate(request).info


def names(wire: Wire, *filters: str) -> list[str]:
    return [each.info.name for each in wire.mounts.List(pb.ListRequest(filters=filters))]


def collect(wire: Wire) -> None:
    """A collection now: a lease that is deleted and waited for."""
    lease = wire.leases.Create(leases_pb2.CreateRequest()).lease
    wire.leases.Delete(leases_pb2.DeleteRequest(id=lease.id, sync=True))


def test_a_life(wire: Wire, layer: Path) -> None:
    overlay = types_pb2.Mount(
        type="format/overlay", source="overlay", options=["lowerdir={{ overlay 0 1 }}"]
    )
    made = activate(wire, "one", [erofs(layer), erofs(layer), overlay], {"a": "1", "b": "2"})
    first, second = made.active
    assert (first.mount.type, first.mount.source) == ("erofs", str(layer))
    assert (Path(first.mount_point) / "file").read_text() == "in an image"
    assert first.mounted_at.seconds > 1_600_000_000
    (system,) = made.system
    assert (system.type, system.source) == ("overlay", "overlay")
    assert list(system.options) == [f"lowerdir={first.mount_point}:{second.mount_point}"]
    assert wire.mounts.Info(pb.InfoRequest(name="one")).info == made
    assert names(wire, "labels.a==1") == ["one"]
    assert names(wire, "labels.a==2") == []
    wanted = types_pb2.ActivationInfo(name="one", labels={"b": "3"})
    request = pb.UpdateRequest(info=wanted)
    request.update_mask.paths.append("labels.b")
    assert dict(wire.mounts.Update(request).info.labels) == {"a": "1", "b": "3"}
    with wire.refused(grpc.StatusCode.ALREADY_EXISTS, "one"):
        activate(wire, "one", [erofs(layer)])
    wire.mounts.Deactivate(pb.DeactivateRequest(name="one"))
    assert not mounted(first.mount_point)
    with wire.refused(grpc.StatusCode.NOT_FOUND, "one"):
        wire.mounts.Info(pb.InfoRequest(name="one"))
    with wire.refused(grpc.StatusCode.NOT_FOUND, "one"):
        wire.mounts.Deactivate(pb.DeactivateRequest(name="one"))


def test_what_needs_no_activation(wire: Wire) -> None:
    with wire.refused(grpc.StatusCode.UNIMPLEMENTED):
        activate(wire, "one", [types_pb2.Mount(type="bind", source="/")])
    made = activate(wire, "one", [types_pb2.Mount(type="tmpfs", source="x")], temporary=True)
    (bind,) = made.system
    assert (bind.type, bind.source) == ("bind", made.active[0].mount_point)
    wire.mounts.Deactivate(pb.DeactivateRequest(name="one"))


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        ([types_pb2.Mount(type="format/bind", source="{{ mount 0 }}")], "out of bounds"),
        (
            [
                types_pb2.Mount(
                    type="mkfs/loop", source="/etc/x", options=["X-containerd.mkfs.size=1"]
                )
            ],
            "/etc/x",
        ),
    ],
)
def test_bad_input(wire: Wire, mounts: list[types_pb2.Mount], says: str) -> None:
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, says):
        activate(wire, "one", mounts)
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "name"):
        activate(wire, "", mounts)
    assert names(wire) == []


def test_namespaces_do_not_see_each_other(wire: Wire, layer: Path) -> None:
    other = wire.scoped(f"{wire.namespace}-other")
    try:
        made = activate(wire, "one", [erofs(layer)])
        assert names(other) == []
        with other.refused(grpc.StatusCode.NOT_FOUND):
            other.mounts.Deactivate(pb.DeactivateRequest(name="one"))
        assert mounted(made.active[0].mount_point)
    finally:
        other.close()
    wire.mounts.Deactivate(pb.DeactivateRequest(name="one"))


def test_collection(wire: Wire, layer: Path) -> None:
    wire.leases.Create(leases_pb2.CreateRequest(id="lease"))
    box = containers_pb2.Container(
        id="box",
        runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
        spec=any_pb2.Any(type_url=SPEC_URL, value=b"{}"),
    )
    wire.containers.Create(containers_pb2.CreateContainerRequest(container=box))
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="native", key="snap", labels={"containerd.io/gc.root": "x"}
    )
    wire.snapshots.Prepare(request)
    leased = wire.scoped(lease="lease")
    try:
        activate(leased, "leased", [erofs(layer)])
    finally:
        leased.close()
    activate(wire, "of-box", [erofs(layer)], {"containerd.io/gc.bref.container": "box"})
    activate(wire, "of-snap", [erofs(layer)], {"containerd.io/gc.bref.snapshot.native": "snap"})
    alone = activate(wire, "alone", [erofs(layer)])
    collect(wire)
    assert names(wire) == ["leased", "of-box", "of-snap"]
    assert not mounted(alone.active[0].mount_point)
    wire.containers.Delete(containers_pb2.DeleteContainerRequest(id="box"))
    wire.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key="snap"))
    collect(wire)
    assert names(wire) == ["leased"]
    wire.leases.Delete(leases_pb2.DeleteRequest(id="lease", sync=True))
    assert names(wire) == []


def test_a_killed_daemon_knows_its_mounts(own_daemon: Daemon, layer: Path) -> None:
    wire = Wire(own_daemon.address, "sdmounts", lease="lease", ours=True)
    try:
        wire.leases.Create(leases_pb2.CreateRequest(id="lease"))
        made = activate(wire, "one", [erofs(layer)])
        own_daemon.restart()
        assert wire.mounts.Info(pb.InfoRequest(name="one")).info == made
        assert mounted(made.active[0].mount_point)
        wire.mounts.Deactivate(pb.DeactivateRequest(name="one"))
        assert own_daemon.mounts() == []
    finally:
        wire.close()


# Containers ---------------------------------------------------------------------------------


@pytest.fixture(params=[DESCRIBED, LIMITED], ids=["described", "limited"])
def served(
    request: pytest.FixtureRequest, daemon: Daemon, image_tar: Path, unique: str
) -> Iterator[tuple[Supervisord, Sctl]]:
    """A daemon with an erofs snapshotter that needs the mount manager, and the image on it."""
    own = Supervisord()
    own.more = str(request.param)
    try:
        own.start()
        sctl = Sctl(own.address, unique)
        sctl("images", "import", "--snapshotter", "erofs", str(image_tar))
        yield own, sctl
    finally:
        own.close()
        remove_cgroups(f"/{unique}")


def test_containers_run(served: tuple[Supervisord, Sctl]) -> None:
    daemon, sctl = served
    words = ["run", "--rm", "--snapshotter", "erofs", IMAGE]
    script = "echo in >/new && cat /new && ls /etc/passwd"
    for name in ("first", "first", "second"):
        assert sctl(*words, name, "sh", "-c", script).out == "in\n/etc/passwd\n"
    wire = Wire(daemon.address, sctl.namespace, ours=True)
    try:
        collect(wire)
        assert names(wire) == []
    finally:
        wire.close()
    assert not [point for point in daemon.mounts() if "/t/" in point or "rootfs" in point]


def test_a_container_keeps_its_mounts_through_a_restart(
    served: tuple[Supervisord, Sctl],
) -> None:
    daemon, sctl = served
    sctl("run", "-d", "--snapshotter", "erofs", IMAGE, "box", "sleep", "1000")
    wire = Wire(daemon.address, sctl.namespace, ours=True)
    try:
        assert names(wire) == ["box"]
        daemon.restart()
        collect(wire)
        assert names(wire) == ["box"]
        assert sctl("tasks", "exec", "--exec-id", "x", "box", "cat", "/etc/passwd").out
        sctl("tasks", "kill", "--signal", "KILL", "box")
        sctl("tasks", "rm", "--force", "box")
        sctl("containers", "rm", "box")
        collect(wire)
        assert names(wire) == []
    finally:
        wire.close()


def test_a_create_that_fails_leaves_no_mount(served: tuple[Supervisord, Sctl]) -> None:
    daemon, sctl = served
    before = os.listdir(daemon.state)
    words = ["run", "--rm", "--snapshotter", "erofs", IMAGE, "box"]
    sctl.refused(*words, "no-such-command", says="no-such-command")
    wire = Wire(daemon.address, sctl.namespace, ours=True)
    try:
        assert names(wire) == []
    finally:
        wire.close()
    assert os.listdir(daemon.state) == before
    assert sctl(*words, "echo", "again").out == "again\n"
