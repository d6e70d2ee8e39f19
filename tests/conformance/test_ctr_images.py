"""``ctr images``: import, list, check, tag, label, export, mount, remove."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import ocitar
from .ctr import Ctr
from .fixtures import IMAGE, Shop

OTHER = "docker.io/test/other:2"


@pytest.fixture
def imported(ctr: Ctr, image_tar: Path) -> Ctr:
    """``ctr`` in a namespace into which the image has been imported."""
    ctr("i", "import", str(image_tar))
    return ctr


def collect(ctr: Ctr) -> None:
    """Has garbage collected, as what an import wrote besides the image."""
    ctr("leases", "rm", "--sync", ctr("leases", "create").out.strip())


def test_import_lists_and_unpacks(imported: Ctr, image: ocitar.Image) -> None:
    (row,) = imported("i", "ls").rows()
    assert row[:3] == [IMAGE, ocitar.MANIFEST, image.manifest]
    assert row[-2:] == ["linux/amd64", "-"]
    (row,) = imported("i", "check").rows()
    assert row[2:5] == [image.manifest, "complete", "(4/4)"]
    assert row[-1] == "true"
    found = {row[0]: row[1:] for row in imported("snapshots", "ls").rows()}
    first, second, third = image.chain_ids
    assert found == {
        first: ["Committed"],
        second: [first, "Committed"],
        third: [second, "Committed"],
    }


def test_import_brings_every_blob_with_its_labels(imported: Ctr, image: ocitar.Image) -> None:
    collect(imported)
    assert set(imported("content", "ls", "-q").out.split()) == set(image.blobs)
    rows = {row[0]: row[-1] for row in imported("content", "ls").rows()}
    for number, (digest, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
        assert f"containerd.io/uncompressed={diff_id}" in rows[digest]
        assert f"containerd.io/gc.ref.content.l.{number}={digest}" in rows[image.manifest]
    assert f"containerd.io/gc.ref.content.config={image.config}" in rows[image.manifest]
    snapshot = f"containerd.io/gc.ref.snapshot.overlayfs={image.chain_ids[-1]}"
    assert snapshot in rows[image.config]


def test_import_twice_is_the_same(imported: Ctr, image_tar: Path, image: ocitar.Image) -> None:
    imported("i", "import", str(image_tar))
    collect(imported)
    assert len(imported("i", "ls").rows()) == 1
    assert set(imported("content", "ls", "-q").out.split()) == set(image.blobs)
    assert imported("leases", "ls").rows() == []


def test_import_without_unpack(ctr: Ctr, image_tar: Path) -> None:
    ctr("i", "import", "--no-unpack", str(image_tar))
    (row,) = ctr("i", "check").rows()
    assert row[-1] == "false"
    assert ctr("snapshots", "ls").rows() == []


@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_import_of_other_compressions(ctr: Ctr, tmp_path: Path, kind: str) -> None:
    made = ocitar.build([[ocitar.Member("file", b"content\n" * 1000)]], [kind])
    ctr("i", "import", str(made.write(tmp_path / "i.tar", OTHER)))
    (row,) = ctr("i", "check").rows()
    assert row[3] == "complete"
    assert row[-1] == "true"
    assert [row[0] for row in ctr("snapshots", "ls").rows()] == made.chain_ids


def test_import_into_the_native_snapshotter(
    ctr: Ctr, image_tar: Path, image: ocitar.Image, tmp_path: Path
) -> None:
    ctr("i", "import", "--snapshotter", "native", str(image_tar))
    rows = ctr("snapshots", "--snapshotter", "native", "ls").rows()
    assert {row[0] for row in rows} == set(image.chain_ids)
    ctr("i", "mount", "--snapshotter", "native", IMAGE, str(tmp_path))
    try:
        assert sorted(os.listdir(tmp_path / "data/opaque")) == ["above"]
        assert not (tmp_path / "data/gone").exists()
        assert (tmp_path / "data/replaced").read_text() == "second\n"
    finally:
        ctr("i", "unmount", str(tmp_path))


@pytest.fixture
def mounted(shop: Shop, tmp_path: Path) -> Iterator[Path]:
    """The shop's image, mounted."""
    answer = shop.ctr("i", "mount", shop.image, str(tmp_path)).out.split()
    assert answer[-1] == str(tmp_path)
    yield tmp_path
    shop.ctr("i", "unmount", "--rm", str(tmp_path))


def test_mount_shows_all_layers(mounted: Path) -> None:
    data = mounted / "data"
    assert sorted(os.listdir(data / "opaque")) == ["above"]
    assert not (data / "gone").exists()
    assert (data / "replaced").read_text() == "second\n"
    assert (data / "übel").read_text() == "grüß\n"
    assert (data / ("long/" * 30) / "name").read_text() == "long\n"
    assert os.readlink(data / "soft") == "kept"
    assert (data / "kept").stat().st_ino == (data / "linked").stat().st_ino
    kept = (data / "kept").stat()
    assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode)) == (1000, 1000, 0o640)
    assert int(kept.st_mtime) == ocitar.EPOCH
    assert stat.S_IMODE((data / "setuid").stat().st_mode) == 0o4755
    assert stat.S_ISFIFO((data / "fifo").stat().st_mode)
    null = (data / "null").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert stat.S_IMODE((mounted / "tmp").stat().st_mode) == 0o1777


def test_mount_is_read_only_unless_asked(shop: Shop, mounted: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (mounted / "file").write_text("x")


def test_mount_for_writing(shop: Shop, tmp_path: Path) -> None:
    shop.ctr("i", "mount", "--rw", shop.image, str(tmp_path))
    try:
        (tmp_path / "file").write_text("x")
        keys = [row[0] for row in shop.ctr("snapshots", "ls").rows() if row[-1] == "Active"]
        assert keys == [str(tmp_path)]
    finally:
        shop.ctr("i", "unmount", "--rm", str(tmp_path))
    assert str(tmp_path) not in shop.ctr("snapshots", "ls").out
    assert not os.path.ismount(tmp_path)


def test_tag_label_and_remove(imported: Ctr, image: ocitar.Image) -> None:
    imported("i", "tag", IMAGE, OTHER)
    assert imported("i", "ls", "-q").out.split() == sorted([IMAGE, OTHER])
    imported.refused("i", "tag", IMAGE, OTHER, says="already exists")
    imported("i", "tag", "--force", IMAGE, OTHER)
    imported("i", "label", OTHER, "a=b", "c=d")
    (row,) = (row for row in imported("i", "ls").rows() if row[0] == OTHER)
    assert sorted(row[-1].split(",")) == ["a=b", "c=d"]
    imported("i", "label", OTHER, "a=")
    (row,) = imported("i", "ls", f"name=={OTHER}").rows()
    assert row[-1] == "c=d"
    assert imported("i", "rm", "--sync", OTHER).out.split() == [OTHER]
    assert imported("i", "ls", "-q").out.split() == [IMAGE]
    assert set(imported("content", "ls", "-q").out.split()) == set(image.blobs)


def test_remove_sync_frees_content_and_snapshots(imported: Ctr) -> None:
    imported("i", "rm", "--sync", IMAGE)
    assert imported("i", "ls", "-q").out == ""
    assert imported("content", "ls", "-q").out == ""
    assert imported("snapshots", "ls").rows() == []


def test_remove_of_an_absent_image_says_so(ctr: Ctr) -> None:
    result = ctr("i", "rm", "docker.io/test/absent:1", code=None)
    assert "not found" in result.err


def test_export_is_a_layout_that_imports_again(
    imported: Ctr, image: ocitar.Image, tmp_path: Path
) -> None:
    out = tmp_path / "out.tar"
    imported("i", "export", str(out), IMAGE)
    with tarfile.open(out) as archive:
        files = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        contents = {name: file.read() for name, file in files.items() if file}
    index = json.loads(contents["index.json"])
    assert [m["digest"] for m in index["manifests"]] == [image.manifest]
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == IMAGE
    exported = {f"sha256:{n[13:]}": d for n, d in contents.items() if n.startswith("blobs/")}
    assert exported == image.blobs
    imported("i", "rm", "--sync", IMAGE)
    imported("i", "import", str(out))
    (row,) = imported("i", "check").rows()
    assert row[2:5] == [image.manifest, "complete", "(4/4)"]


def test_check_tells_what_is_missing(imported: Ctr, image: ocitar.Image) -> None:
    imported("content", "rm", image.layers[1])
    (row,) = imported("i", "check").rows()
    assert row[3:5] == ["incomplete", "(3/4)"]


def test_import_of_garbage_leaves_nothing(ctr: Ctr, tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(os.urandom(4096))
    ctr.refused("i", "import", str(path))
    assert ctr("i", "ls", "-q").out == ""
    assert ctr("content", "ls", "-q").out == ""
    assert ctr("leases", "ls").rows() == []


def test_import_with_a_wrong_layer_digest_is_refused(ctr: Ctr, tmp_path: Path) -> None:
    made = ocitar.build([[ocitar.Member("file", b"one")]])
    made.blobs[made.layers[0]] = ocitar.compress(b"something else", "gzip")[1]
    ctr.refused("i", "import", str(made.write(tmp_path / "i.tar", OTHER)))
    assert made.layers[0] not in ctr("content", "ls", "-q").out


def test_import_with_a_wrong_diff_id_is_not_committed(ctr: Ctr, tmp_path: Path) -> None:
    made = ocitar.build([[ocitar.Member("file", b"one")]])
    config = json.loads(made.blobs[made.config])
    wrong = ocitar.sha256(b"wrong")
    config["rootfs"]["diff_ids"] = [wrong]
    made = _with_config(made, json.dumps(config).encode())
    ctr.refused("i", "import", str(made.write(tmp_path / "i.tar", OTHER)), says="wrong diff id")
    assert ctr("snapshots", "ls").rows() == []


def _with_config(made: ocitar.Image, config: bytes) -> ocitar.Image:
    manifest = json.loads(made.blobs.pop(made.manifest))
    del made.blobs[made.config]
    made.config = ocitar.sha256(config)
    made.blobs[made.config] = config
    manifest["config"].update(digest=made.config, size=len(config))
    encoded = json.dumps(manifest).encode()
    made.manifest = ocitar.sha256(encoded)
    made.blobs[made.manifest] = encoded
    return made


def test_import_of_a_corrupt_gzip_layer_is_refused(ctr: Ctr, tmp_path: Path) -> None:
    made = ocitar.build([[ocitar.Member("file", os.urandom(200_000))]])
    blob = made.blobs.pop(made.layers[0])
    broken = blob[: len(blob) // 2] + b"\0" * 64 + blob[len(blob) // 2 + 64 :]
    manifest = json.loads(made.blobs.pop(made.manifest))
    manifest["layers"][0]["digest"] = ocitar.sha256(broken)
    encoded = json.dumps(manifest).encode()
    made.manifest = ocitar.sha256(encoded)
    made.blobs |= {ocitar.sha256(broken): broken, made.manifest: encoded}
    ctr.refused("i", "import", str(made.write(tmp_path / "i.tar", OTHER)))
    assert ctr("snapshots", "ls").rows() == []


def test_image_is_listed_by_filters(imported: Ctr) -> None:
    imported("i", "tag", IMAGE, OTHER)
    assert imported("i", "ls", "-q", "name~=other").out.split() == [OTHER]
    assert imported("i", "ls", "-q", "name~=other", "name~=busybox").out.split() == sorted(
        [IMAGE, OTHER]
    )
    imported.refused("i", "ls", "name=", says="invalid argument")


def test_concurrent_imports_of_one_image(ctr: Ctr, image_tar: Path) -> None:
    running = [
        subprocess.Popen(
            ctr.command("i", "import", str(image_tar)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    ends = [process.communicate(timeout=30) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ends
    (row,) = ctr("i", "check").rows()
    assert row[3] == "complete"
    assert row[-1] == "true"
