"""Images imported and containers run on the snapshotters that need a disk of their own kind, by
``sctl`` and by Debian's ``ctr``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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
