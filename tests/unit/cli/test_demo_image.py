"""The demo's image: the same bytes each time, and what it promises is in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from supervisord.cli.demo_image import DEFAULT_NAME, build


def test_it_is_a_sound_layout(tmp_path: Path) -> None:
    build(tmp_path / "a.tar")
    build(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        files = {
            entry.name: archive.extractfile(entry).read()  # type: ignore[union-attr]
            for entry in archive
        }
    for name, data in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    entry = json.loads(files["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == DEFAULT_NAME
    manifest = json.loads(files["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(files["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    layer = gzip.decompress(files["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")])
    digest = "sha256:" + hashlib.sha256(layer).hexdigest()
    assert config["rootfs"]["diff_ids"] == [digest]
    with tarfile.open(fileobj=io.BytesIO(layer)) as rootfs:
        names = set(rootfs.getnames())
    assert {"bin/busybox", "bin/sh", "etc/passwd", "etc/group", "tmp"} <= names
