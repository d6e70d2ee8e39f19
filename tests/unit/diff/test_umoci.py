"""Round trips with umoci: it unpacks our layers to the same tree, and we apply what it repacks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from supervisord.contracts.images import Descriptor
from supervisord.diff.media import OCI_GZIP
from supervisord.testing.mounting import mounted
from supervisord.testing.trees import contents

from .conftest import House
from .test_compute import BASE, CHANGE

pytestmark = pytest.mark.blocks("it mounts, and writes to the mounts")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


class Layout:
    """An OCI layout folder with one image, ``test``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, data: bytes, media_type: str) -> dict[str, object]:
        """Adds a blob; answers its descriptor."""
        hexadecimal = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / hexadecimal).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": len(data)}

    def image(self, layers: list[tuple[bytes, str]]) -> None:
        """Makes the image of layers, each with its diff-id."""
        root = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add(json.dumps(config).encode(), CONFIG),
            "layers": [self.add(data, OCI_GZIP) for data, _ in layers],
        }
        entry = self.add(json.dumps(manifest).encode(), MANIFEST)
        entry["annotations"] = {"org.opencontainers.image.ref.name": "test"}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.folder / "index.json").write_text(json.dumps(index))

    def last_layer(self, tag: str) -> bytes:
        """The uppermost layer of an image."""
        index = json.loads((self.folder / "index.json").read_text())
        for entry in index["manifests"]:
            if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
                manifest = json.loads(self._blob(entry["digest"]))
                return self._blob(manifest["layers"][-1]["digest"])
        raise KeyError(tag)

    def _blob(self, digest: str) -> bytes:
        return (self.folder / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def umoci(*arguments: object) -> None:
    done = subprocess.run(["umoci", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_there_and_back(house: House) -> None:
    await house.layer("base", "", BASE)
    await house.layer("changed", "base", CHANGE)
    lower = await house.snapshotter.view("lower", "base", {})
    upper = await house.snapshotter.view("upper", "changed", {})
    layout = Layout(house.tmp_path / "layout")
    layers = []
    for descriptor in (await house.diff([], lower), await house.diff(lower, upper)):
        info = await house.info(descriptor)
        layers.append((await house.read(descriptor), info.labels["containerd.io/uncompressed"]))
    layout.image(layers)
    bundle = house.tmp_path / "bundle"
    umoci("unpack", "--image", f"{layout.folder}:test", bundle)
    rootfs = bundle / "rootfs"
    with mounted(upper, house.tmp_path / "mnt") as root:
        assert contents(rootfs) == contents(root)

    (rootfs / "etc/hosts").unlink()
    (rootfs / "new/suid").write_text("changed")
    (rootfs / "added").mkdir(mode=0o711)
    (rootfs / "added" / ("n" * 150)).write_text("added")
    os.setxattr(rootfs / "added", "user.note", b"kept")
    umoci("repack", "--image", f"{layout.folder}:again", bundle)
    data = layout.last_layer("again")
    mounts = await house.snapshotter.prepare("again", "changed", {})
    applied = await house.apply(await house.blob(data, OCI_GZIP), mounts)
    assert isinstance(applied, Descriptor)
    with mounted(mounts, house.tmp_path / "mnt") as root:
        assert contents(root) == contents(rootfs)
