"""Pulls onto snapshotters that are not overlays of folders: what a container sees is the same.

Layers are extracted side by side there too, before they have their parents: whiteouts must last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.transferring import Mover
from tests.conformance.daemons import Supervisord, remove_cgroups
from tests.conformance.wire import Wire
from tests.disks import disk
from tests.e2e.conftest import Sctl
from tests.registries.server import needed, server, skopeo

pytestmark = needed

LIMITED = '[plugins."io.containerd.snapshotter.v1.erofs"]\ndefault_size = "16MiB"\n'


@pytest.fixture
def pulled(image_tar: Path, tmp_path: Path, unique: str) -> Iterator[tuple[Supervisord, str]]:
    """A daemon on a btrfs disk, and an image in a registry."""
    daemon = Supervisord()
    (tmp_path / "registry").mkdir()
    with (
        server(tmp_path / "registry") as registry,
        disk(tmp_path / "disk", "btrfs", size=512 << 20) as volume,
    ):
        target = f"docker://{registry.address}/busybox:1"
        skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{image_tar}", target)
        daemon.root = volume / "root"
        try:
            yield daemon, f"{registry.address}/busybox:1"
        finally:
            daemon.close()
            remove_cgroups(f"/{unique}")


@pytest.mark.parametrize(
    ("snapshotter", "more"),
    [("btrfs", ""), ("erofs", ""), ("erofs", LIMITED)],
    ids=["btrfs", "erofs", "limited"],
)
def test_a_container_sees_the_same(
    pulled: tuple[Supervisord, str], unique: str, snapshotter: str, more: str
) -> None:
    daemon, name = pulled
    daemon.more = more
    daemon.start()
    wire, sctl = Wire(daemon.address, unique, ours=True), Sctl(daemon.address, unique)
    script = "find /data /etc -exec stat -c '%n %a %u %g %s' {} + | sort"
    seen = []
    try:
        for each in ("overlayfs", snapshotter):
            Mover(wire).pull(name, snapshotter=each)
            words = ["run", "--rm", "--snapshotter", each, name, f"{unique}-{each}"]
            seen.append(_without_folder_sizes(sctl(*words, "sh", "-c", script).out))
    finally:
        wire.close()
    assert len(seen[0]) > 20
    assert seen[0] == seen[1]


def _without_folder_sizes(listing: str) -> list[str]:
    """Each file system has its own idea of a folder's size."""
    lines = [line.rsplit(" ", 4) for line in listing.splitlines()]
    folders = {"/".join(line[0].split("/")[:-1]) for line in lines}
    return [" ".join(line[:4] if line[0] in folders else line) for line in lines]
