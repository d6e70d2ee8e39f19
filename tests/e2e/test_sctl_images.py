"""``sctl images``: archives of every kind, good and hostile, in and out again."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from supervisord.cli.demo_image import DEFAULT_NAME, build
from tests.conformance import ocitar
from tests.conformance.daemons import Daemon
from tests.conformance.fixtures import IMAGE
from tests.e2e.conftest import Sctl, Stand

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A small image as an OCI layout."""
    return build(tmp_path / "image.tar")


def files_of(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isreg()}  # type: ignore[union-attr]


def write(archive: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive


def empty(sctl: Sctl) -> bool:
    """No image and no snapshot, and no lease that does not end by itself."""
    words = (("images", "ls", "-q"), ("snapshots", "ls", "-q"))
    leases = sctl("leases", "ls").rows()
    ending = all("containerd.io/gc.expire" in " ".join(row) for row in leases)
    return ending and all(sctl(*some).out == "" for some in words)


def test_import_and_list(sctl: Sctl, layout: Path) -> None:
    name, digest = sctl("images", "import", str(layout)).out.split()
    assert name == DEFAULT_NAME
    row = sctl("images", "ls").rows()[0]
    assert row[:3] == [name, MANIFEST, digest]
    record = json.loads(sctl("images", "ls", "--format", "json").out)[0]
    assert record["platforms"]
    assert sctl("images", "ls", "-q").out == f"{name}\n"
    check = json.loads(sctl("images", "check", "--format", "json").out)[0]
    assert (check["status"], check["unpacked"]) == ("complete (2/2)", True)
    assert sctl("images", "check", "-q").out == f"{name}\n"
    assert sctl("leases", "ls", "-q").out == ""
    assert sctl("content", "active").rows() == []


def test_import_twice_changes_nothing(sctl: Sctl, layout: Path) -> None:
    sctl("images", "import", str(layout))
    before = sctl("content", "ls", "-q").out
    sctl("images", "import", str(layout))
    assert sctl("content", "ls", "-q").out == before


@pytest.mark.parametrize("how", ["gzip", "zstd", "stdin"])
def test_import_compressed_or_from_stdin(sctl: Sctl, layout: Path, how: str) -> None:
    data = layout.read_bytes()
    if how == "stdin":
        sctl("images", "import", "-", input=data)
    else:
        packed = gzip.compress(data, 1) if how == "gzip" else zstandard.compress(data)
        layout.write_bytes(packed)
        sctl("images", "import", str(layout))
    assert sctl("images", "check", "-q").out == f"{DEFAULT_NAME}\n"


def test_layers_with_whiteouts(sctl: Sctl, image: ocitar.Image, image_tar: Path) -> None:
    sctl("images", "import", str(image_tar))
    assert image.chain_ids[-1] in sctl("snapshots", "ls", "-q").out.split()
    assert sctl("images", "check", "-q").out == f"{IMAGE}\n"


def test_a_docker_archive(sctl: Sctl, layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "docker.tar"
    command = ["skopeo", "copy", f"oci-archive:{layout}", f"docker-archive:{archive}:small:v1"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    name = sctl("images", "import", str(archive)).out.split()[0]
    assert name == "docker.io/library/small:v1"
    assert sctl("images", "check", "-q").out == f"{name}\n"


def test_an_old_docker_archive_with_links(sctl: Sctl, layout: Path, tmp_path: Path) -> None:
    """Layers as ``ID/layer.tar``, one of them a link to another, and no layout at all."""
    blobs = files_of(layout)
    entry = json.loads(blobs["index.json"])["manifests"][0]
    manifest = json.loads(blobs["blobs/" + entry["digest"].replace(":", "/")])
    layer = gzip.decompress(blobs["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")])
    config = json.loads(blobs["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    config["rootfs"]["diff_ids"] *= 2
    archive = tmp_path / "old.tar"
    data: dict[str, bytes] = {
        "aaa/VERSION": b"1.0",
        "aaa/json": b"{}",
        "aaa/layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "repositories": b"{}",
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": ["old", "old:2"],
              "Layers": ["aaa/layer.tar", "bbb/layer.tar"]}]
        ).encode(),
    }  # fmt: skip
    write(archive, data)
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("bbb/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../aaa/layer.tar"
        tar.addfile(link)
    names = [line.split()[0] for line in sctl("images", "import", str(archive)).out.splitlines()]
    assert names == ["docker.io/library/old:latest", "docker.io/library/old:2"]
    assert sorted(sctl("images", "check", "-q").out.split()) == sorted(names)


def test_naming(sctl: Sctl, daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    blobs = files_of(layout)
    index = json.loads(blobs["index.json"])
    digest = index["manifests"][0]["digest"]
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    blobs["index.json"] = json.dumps(index).encode()
    archive = str(write(tmp_path / "tagged.tar", blobs))
    words = ["images", "import", "--no-unpack"]
    assert sctl(*words, "--base-name", "my/app", archive).out.split()[0] == "my/app:v1"
    assert sctl(*words, archive).out.startswith("import-2")
    out = sctl(*words, "--base-name", "my/app", "--digests", "--index-name", "whole", archive).out
    expected = {"my/app:v1", f"my/app@{digest}", "whole"}
    if daemon.ours:  # as by containerd's own Transfer service, the whole has its digest, too
        whole = hashlib.sha256(blobs["index.json"]).hexdigest()
        expected.add(f"my/app@sha256:{whole}")
    assert {line.split()[0] for line in out.splitlines()} == expected
    named = ["--base-name", "my/app", "--digests", "--skip-digest-for-named"]
    found = {line.split()[0] for line in sctl(*words, *named, archive).out.splitlines()}
    assert "my/app:v1" in found
    assert f"my/app@{digest}" not in found
    assert sctl("images", "check", "-q").out == ""


def test_export_and_import_again(sctl: Sctl, layout: Path, tmp_path: Path) -> None:
    digest = sctl("images", "import", str(layout)).out.split()[1]
    out = tmp_path / "out.tar"
    sctl("images", "export", str(out), DEFAULT_NAME)
    files = files_of(out)
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    docker = json.loads(files["manifest.json"])
    assert docker[0]["RepoTags"] == ["busybox:demo"]
    assert docker[0]["Config"] in files
    sctl("images", "rm", "--sync", DEFAULT_NAME)
    assert sctl("content", "ls", "-q").out == ""
    assert sctl("images", "import", str(out)).out.split() == [DEFAULT_NAME, digest]
    with (tmp_path / "stdout.tar").open("wb") as target:
        done = subprocess.run(
            sctl.command("images", "export", "--skip-manifest-json", "-", DEFAULT_NAME),
            stdout=target,
            check=True,
            timeout=30,
        )
    assert done.returncode == 0
    assert "manifest.json" not in files_of(tmp_path / "stdout.tar")


def test_ctr_reads_our_export_and_we_read_its(stand: Stand, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    stand.sctl("images", "export", str(ours), stand.image)
    stand.shop.ctr("i", "export", str(theirs), stand.image)
    digests = set()
    for client, archive in ((stand.shop.ctr, ours), (stand.sctl, theirs)):
        client("i", "import", str(archive))
        digests.add(stand.shop.ctr("i", "ls").rows()[0][2])
    assert len(digests) == 1


def test_a_failed_export_leaves_no_file(sctl: Sctl, tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    sctl.refused("images", "export", str(out), "no/such:image", says="not found")
    assert not out.exists()


def test_names_and_labels(sctl: Sctl, layout: Path) -> None:
    sctl("images", "import", str(layout))
    assert sctl("images", "tag", DEFAULT_NAME, "a:1", "b:1").out == "a:1\nb:1\n"
    sctl.refused("images", "tag", DEFAULT_NAME, "a:1", says="already exists")
    sctl("images", "tag", "--force", DEFAULT_NAME, "a:1")
    assert sctl("images", "label", "a:1", "x=1", "y=2").out == "x=1,y=2\n"
    assert sctl("images", "label", "a:1", "x=").out == "y=2\n"
    assert sctl("images", "label", "-r", "a:1", "z=3").out == "z=3\n"
    assert sctl("images", "ls", "-q", "labels.z==3").out == "a:1\n"
    result = sctl("images", "rm", "a:1", "none:1", "b:1", code=1)
    assert result.out == "a:1\nb:1\n"
    assert "none:1" in result.err
    inspected = json.loads(sctl("images", "inspect", DEFAULT_NAME).out)
    assert inspected["config"]["config"]["Cmd"] == ["sh"]
    (layer,) = inspected["layers"]
    assert layer["here"]
    assert layer["diffId"] == layer["chainId"] == inspected["chain_id"]
    assert inspected["config"]["rootfs"]["diff_ids"] == [layer["diffId"]]
    assert inspected["platform"].startswith("linux/")
    assert inspected["size"] > layer["size"] > 0
    assert inspected["unpacked"] == {"overlayfs": True}


def test_mount_and_unmount(sctl: Sctl, layout: Path, tmp_path: Path) -> None:
    sctl("images", "import", str(layout))
    point = tmp_path / "mnt"
    point.mkdir()
    assert sctl("images", "mount", DEFAULT_NAME, str(point)).out == f"{point}\n"
    try:
        assert (point / "bin/busybox").stat().st_mode & 0o111
        with pytest.raises(OSError):
            (point / "new").write_text("x")
    finally:
        sctl("images", "unmount", "--rm", str(point))
    assert list(point.iterdir()) == []
    assert str(point) not in sctl("snapshots", "ls", "-q").out
    sctl("images", "mount", "--rw", DEFAULT_NAME, str(point))
    try:
        (point / "new").write_text("x")
    finally:
        sctl("images", "unmount", "--rm", str(point))
    sctl.refused("images", "mount", DEFAULT_NAME, str(tmp_path / "none"), says="not a folder")
    sctl.refused("images", "unmount", str(point), says="not mounted")


OURS = {
    "bent layer": "has other bytes than its name says",
    "no layer": "is missing",
    "no manifest": "is missing, which its index lists",
    "no index": "its OCI layout has no index.json",
    "no layout": "unrecognized image format",
    "a new layout": "OCI layout '9' is not supported",
    "index of another kind": "Expected `object`, got `array`",
    "manifests of another kind": "Expected `array | null`, got `int` - at `$.manifests`",
    "digest as a path": "manifests[0]: 'sha256:../../../etc/passwd' is no digest",
    "no name": "no image name found: the archive has none",
    "other platform": "has no manifest for linux/",
    "manifest.json is not a list of images": "manifest.json: Expected `",
    "manifest.json is not JSON": "manifest.json: JSON is malformed",
    "Config is not text": "Expected `str`, got `int` - at `$[0].Config`",
    "Config names 'gone', which is not in the archive": "image config 'gone' is not in it",
    "Layers is not a list of text": "Expected `array | null`, got `str` - at `$[0].Layers`",
    "Layers names 'l1', which is not in the archive": "layer 'l1' is not in it",
    "points outside of the archive": "image config '../../c' is not in it",
    "is not an image name": "repository 'library/UPPER' must be lower case",
}
"""What our daemon says, which reads archives itself."""
HARMLESS = {"blob with a bad name", "outside"}
"""What it stores under its digest and nobody refers to."""


def hostile(kind: str, good: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """A layout bent in one way, and what must be said of it."""
    files = dict(good)
    index: dict[str, Any] = json.loads(files["index.json"])
    name = "blobs/" + index["manifests"][0]["digest"].replace(":", "/")
    manifest: dict[str, Any] = json.loads(files[name])
    layer = "blobs/" + manifest["layers"][0]["digest"].replace(":", "/")
    match kind:
        case "bent layer":
            files[layer] = files[layer][:-1] + b"x"
            return files, "digest"
        case "no layer":
            del files[layer]
            return files, "the archive is incomplete: it lacks blob"
        case "no manifest":
            del files[name]
            return files, "the archive is incomplete: a blob of"
        case "no index":
            del files["index.json"]
            return files, "the OCI layout has no index.json"
        case "no layout":
            del files["oci-layout"]
            return files, "neither an OCI layout nor a docker archive"
        case "a new layout":
            files["oci-layout"] = b'{"imageLayoutVersion": "9"}'
            return files, "unsupported OCI layout version '9'"
        case "index of another kind":
            files["index.json"] = b"[]"
            return files, "index.json is not a JSON object"
        case "manifests of another kind":
            files["index.json"] = b'{"manifests": 7}'
            return files, "index.json has no list of manifests"
        case "digest as a path":
            index["manifests"][0]["digest"] = "sha256:../../../etc/passwd"
            files["index.json"] = json.dumps(index).encode()
            return files, "is not a digest"
        case "blob with a bad name":
            files["blobs/sha256/abc"] = b"x"
            return files, "is not a digest"
        case "no name":
            del index["manifests"][0]["annotations"]
            files["index.json"] = json.dumps(index).encode()
            return files, "the archive names no image"
        case "other platform":
            index["manifests"][0]["platform"] = {"os": "plan9", "architecture": "mips"}
            files["index.json"] = json.dumps(index).encode()
            return files, "the archive has no image for this platform"
        case "outside":
            return {"../escape": b"x", **files}, "points outside of the archive"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "bent layer", "no layer", "no manifest", "no index", "no layout", "a new layout",
        "index of another kind", "manifests of another kind", "digest as a path",
        "blob with a bad name", "no name", "other platform", "outside",
    ],
)  # fmt: skip
def test_a_hostile_archive_is_refused(
    sctl: Sctl, daemon: Daemon, layout: Path, tmp_path: Path, kind: str
) -> None:
    files, message = hostile(kind, files_of(layout))
    archive = write(tmp_path / "hostile.tar", files)
    if daemon.ours and kind in HARMLESS:
        assert sctl("images", "import", str(archive)).out.startswith(DEFAULT_NAME)
        assert not (tmp_path.parent / "escape").exists()
        return
    message = OURS[kind] if daemon.ours else message
    result = sctl.refused("images", "import", str(archive), says=message)
    assert result.err.startswith("sctl: ")
    assert result.err.count("\n") == 1
    assert empty(sctl)
    assert sctl("content", "active").rows() == []
    sctl("images", "import", str(layout))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{}", "manifest.json is not a list of images"),
        ("[7]", "manifest.json is not a list of images"),
        ("nonsense", "manifest.json is not JSON"),
        ('[{"Config": 7}]', "Config is not text"),
        ('[{"Config": "gone"}]', "Config names 'gone', which is not in the archive"),
        ('[{"Config": "c", "Layers": "x"}]', "Layers is not a list of text"),
        ('[{"Config": "c", "Layers": ["l1"]}]', "Layers names 'l1', which is not in the archive"),
        ('[{"Config": "../../c"}]', "points outside of the archive"),
        ('[{"Config": "c", "RepoTags": ["UPPER"], "Layers": []}]', "is not an image name"),
    ],
)
def test_a_hostile_docker_archive_is_refused(
    sctl: Sctl, daemon: Daemon, tmp_path: Path, manifest: str, message: str
) -> None:
    message = OURS[message] if daemon.ours else message
    archive = write(tmp_path / "x.tar", {"manifest.json": manifest.encode(), "c": b"{}"})
    with tarfile.open(archive, "a") as tar:
        for name, target in (("l1", "l2"), ("l2", "l1")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    result = sctl.refused("images", "import", str(archive), says=message)
    assert result.err.count("\n") == 1
    assert empty(sctl)


def test_a_wrong_diff_id_leaves_no_snapshot(sctl: Sctl, layout: Path, tmp_path: Path) -> None:
    files = files_of(layout)
    index = json.loads(files["index.json"])
    manifest = json.loads(files.pop("blobs/" + index["manifests"][0]["digest"].replace(":", "/")))
    config = json.loads(files.pop("blobs/" + manifest["config"]["digest"].replace(":", "/")))
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]

    def put(value: Any) -> dict[str, Any]:
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    manifest["config"].update(put(config))
    index["manifests"][0].update(put(manifest))
    files["index.json"] = json.dumps(index).encode()
    archive = write(tmp_path / "x.tar", files)
    result = sctl.refused("images", "import", str(archive), says="config says sha256:000")
    assert result.err.count("\n") == 1
    assert sctl("snapshots", "ls", "-q").out == ""


def test_what_is_no_file(sctl: Sctl, daemon: Daemon, tmp_path: Path) -> None:
    result = sctl.refused("images", "import", str(tmp_path / "none.tar"))
    assert result.err == f"sctl: {tmp_path}/none.tar: no such file or directory\n"
    wrong = "unrecognized image format" if daemon.ours else "not a readable image archive"
    result = sctl.refused("images", "import", "-", says=wrong)
