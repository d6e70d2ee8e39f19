"""Containers in user namespaces: the image's files are their root's, and stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.containerd.services.introspection.v1 import introspection_pb2 as introspection
from protos.containerd.services.snapshots.v1 import snapshots_pb2 as snapshots
from tests.conformance.daemons import Daemon
from tests.conformance.fixtures import Shop
from tests.e2e.conftest import Stand

pytestmark = pytest.mark.only("supervisord", reason="containerd 1.6 maps no layers")

SNAPSHOTTER = "overlayfs"
MAPS = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
LOOK = (
    "stat -c %u:%g / /bin/busybox && echo mine >/bin/mine && rm /bin/sh && cat /proc/self/uid_map"
)


@pytest.fixture(autouse=True)
def _a_way_in(daemon: Daemon, shop: Shop) -> Iterator[None]:
    """The runtime reaches the root as the container's root: no folder on the way may be closed."""
    reply = shop.wire.introspection.Plugins(
        introspection.PluginsRequest(filters=[f"id=={SNAPSHOTTER}"])
    )
    if "remap-ids" not in reply.plugins[0].capabilities:
        pytest.skip("this kernel has no id-mapped layers")
    before = {path: path.stat().st_mode for path in Path(daemon.address).parents}
    for path, mode in before.items():
        if not mode & 1:
            path.chmod(mode | 1)
    yield
    for path, mode in before.items():
        if not mode & 1:
            path.chmod(mode & 0o7777)


def layers(shop: Shop, id: str) -> tuple[Path, list[Path]]:
    """The folder of the container's changes, and those of the image."""
    reply = shop.wire.snapshots.Mounts(snapshots.MountsRequest(snapshotter=SNAPSHOTTER, key=id))
    options = dict(option.partition("=")[::2] for option in reply.mounts[0].options)
    return Path(options["upperdir"]), [Path(path) for path in options["lowerdir"].split(":")]


def everything(folders: list[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in (path for folder in folders for path in [folder, *folder.rglob("*")]):
        info = path.lstat()
        times = (info.st_mtime_ns, info.st_ctime_ns)
        found[str(path)] = (info.st_uid, info.st_gid, info.st_mode, info.st_size, *times)
    return found


def test_the_image_is_the_roots_own(stand: Stand, unique: str) -> None:
    shop = stand.shop
    shop.wire.prepare(f"{unique}-look", shop.chain_id)
    _, image = layers(shop, f"{unique}-look")
    before = everything(image)
    for number in range(2):  # two at a time have the layers mapped each in its own way
        id = f"{unique}-{number}"
        host = 100000 + number * 100000
        maps = [word.replace("0:100000", f"0:{host}") for word in MAPS]
        words = ["run", *maps, shop.image, id, "/bin/busybox", "sh", "-c", LOOK]
        lines = stand.sctl(*words).out.split("\n")
        assert lines[:2] == ["0:0", "0:0"]
        assert lines[2].split() == ["0", str(host), "65536"]
        upper, below = layers(shop, id)
        assert below == image
        found = (upper / "bin/mine").lstat()
        assert (found.st_uid, found.st_gid) == (host, 200000)
        assert (upper / "bin/sh").is_char_device(), "a whiteout"
    assert everything(image) == before
    text = Path("/proc/self/mountinfo").read_text()
    assert not [line for line in text.splitlines() if unique in line or "idmapped" in line]


def test_a_task_that_is_made_again(stand: Stand, unique: str) -> None:
    """The second task of a container sees what the first one has written."""
    sctl, shop = stand.sctl, stand.shop
    words = ["/bin/busybox", "sh", "-c", "cat /etc/kept || { echo kept >/etc/kept; }"]
    sctl("run", *MAPS, shop.image, unique, *words)
    again = sctl("tasks", "start", unique)
    assert again.out == "kept\n"


def test_a_client_that_changes_all_owners(stand: Stand, unique: str) -> None:
    """As ctr does it without labels: a copy of the image, for one map only."""
    shop = stand.shop
    words = ["run", "--rm", *MAPS[:4], shop.image, unique, "/bin/busybox", "sh", "-c", LOOK]
    lines = shop.ctr(*words).out.split("\n")
    assert lines[:2] == ["0:0", "0:0"]
    assert lines[2].split() == ["0", "100000", "65536"]
