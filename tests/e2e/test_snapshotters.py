"""Images imported and containers run on the snapshotters that need a disk of their own kind, by
``sctl`` and by Debian's ``ctr``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotters.overlayfs.probe import kernel
from tests.conformance.ctr import Ctr
from tests.conformance.daemons import Supervisord, remove_cgroups
from tests.conformance.fixtures import IMAGE
from tests.disks import disk
from tests.e2e.conftest import Sctl

NAMESPACE = f"sddisk-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["btrfs", "erofs"])
def snapshotter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(snapshotter: str, tmp_path: Path, image_tar: Path) -> Iterator[Supervisord]:
    """A daemon whose root is on a disk that the snapshotter can stand on, with the image."""
    with disk(tmp_path / "disk", "btrfs" if snapshotter == "btrfs" else "ext4") as volume:
        daemon = Supervisord()
        daemon.root = volume / "root"
        try:
            daemon.start()
            words = ["--snapshotter", snapshotter, str(image_tar)]
            Sctl(daemon.address, NAMESPACE)("images", "import", *words)
            yield daemon
        finally:
            daemon.close()
            remove_cgroups(f"/{NAMESPACE}")


def test_containers_run(served: Supervisord, snapshotter: str) -> None:
    sctl, ctr = Sctl(served.address, NAMESPACE), Ctr(served.address, NAMESPACE)
    script = "echo in >/new && cat /new && rm /etc/passwd && ls /etc"
    words = ["run", "--rm", "--snapshotter", snapshotter, IMAGE]
    first = sctl(*words, "first", "sh", "-c", script)
    second = ctr(*words, "second", "sh", "-c", script)
    assert first.out.startswith("in\n")
    assert second.out == first.out
    assert "passwd" not in first.out
    assert sctl(*words, "third", "cat", "/etc/passwd").out.startswith("root:")
    assert not [each for each in served.mounts() if "rootfs" in each]


def test_snapshots_are_kept_through_a_restart(served: Supervisord, snapshotter: str) -> None:
    sctl = Sctl(served.address, NAMESPACE)
    words = ["run", "--snapshotter", snapshotter, IMAGE]
    sctl(*words, "kept", "sh", "-c", "echo kept >/file")
    usage = sctl("snapshots", "--snapshotter", snapshotter, "usage", "kept").out
    served.restart()
    assert sctl("snapshots", "--snapshotter", snapshotter, "usage", "kept").out == usage
    sctl("containers", "rm", "kept")
    assert "kept" not in sctl("snapshots", "--snapshotter", snapshotter, "ls").out


@pytest.mark.parametrize("snapshotter", ["erofs"])
def test_user_namespaces_see_the_image_as_their_own(served: Supervisord, snapshotter: str) -> None:
    if kernel() < (6, 15):
        pytest.skip("this kernel has no id-mapped layers")
    for folder in Path(served.address).parents:
        folder.chmod(folder.stat().st_mode | 1)
    for folder in (served.root, *served.root.parents[:5]):
        folder.chmod(folder.stat().st_mode | 1)
    sctl = Sctl(served.address, NAMESPACE)
    maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"]
    script = "stat -c %u:%g / /bin/busybox && echo mine >/bin/mine && stat -c %u:%g /bin/mine"
    words = ["run", "--rm", "--snapshotter", snapshotter, *maps, IMAGE, "mapped"]
    assert sctl(*words, "/bin/busybox", "sh", "-c", script).out == "0:0\n" * 3
    words = ["run", "--rm", "--snapshotter", snapshotter, IMAGE, "plain"]
    assert sctl(*words, "stat", "-c", "%u:%g", "/bin/busybox").out == "0:0\n"


def test_a_container_does_not_notice_that_the_daemon_stops(
    served: Supervisord, snapshotter: str
) -> None:
    sctl = Sctl(served.address, NAMESPACE)
    sctl("run", "-d", "--snapshotter", snapshotter, IMAGE, "box", "sleep", "1000")
    assert served.stop() == 0
    assert not [point for point in served.mounts() if "/snapshots/" in point]
    served.start()
    look = ["tasks", "exec", "--exec-id"]
    assert sctl(*look, "one", "box", "cat", "/etc/passwd").out.startswith("root:")
    words = ["run", "--rm", "--snapshotter", snapshotter, IMAGE, "other"]
    assert sctl(*words, "cat", "/etc/passwd").out.startswith("root:")
    sctl("tasks", "rm", "--force", "box")
    sctl("containers", "rm", "box")
