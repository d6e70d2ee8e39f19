"""Imports, exports and tags by the Transfer service, with ``ctr``, skopeo and umoci beside it."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.leases.v1 import leases_pb2
from protos.containerd.types import types_pb2
from protos.containerd.types.transfer import transfer_pb2 as types
from tests.clients.transferring import HERE, Mover, Receiving, sending
from tests.conformance.ctr import Ctr
from tests.conformance.fixtures import IMAGE
from tests.conformance.ocitar import Image, Member, build, sha256, tar
from tests.conformance.wire import Wire
from tests.registries.server import needed, skopeo

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

UNPACK = types.UnpackConfiguration(platform=HERE, snapshotter="overlayfs")


@pytest.fixture
def mover(wire: Wire) -> Mover:
    return Mover(wire)


def _load(mover: Mover, wire: Wire, data: bytes, store: types.ImageStore, **more: Any) -> None:
    id, stream = sending(wire, data)
    try:
        mover.transfer(types.ImageImportStream(stream=id, **more), store)
    finally:
        stream.close()


def _save(mover: Mover, wire: Wire, store: types.ImageStore, **more: Any) -> bytes:
    receiving = Receiving(wire)
    try:
        mover.transfer(store, types.ImageExportStream(stream=receiving.id, **more))
    finally:
        data = receiving.close()
    return data


def _names(wire: Wire) -> dict[str, str]:
    found = wire.images.List(images_pb2.ListImagesRequest()).images
    return {image.name: image.target.digest for image in found}


def _members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]


_ANY = types.ImageReference(name="docker.io", is_prefix=True, allow_overwrite=True)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_layout_is_imported_and_runs(
    mover: Mover,
    wire: Wire,
    ctr: Ctr,
    image: Image,
    image_tar: Path,
    unique: str,
    pack: Callable[[bytes], bytes],
) -> None:
    store = types.ImageStore(platforms=[HERE], unpacks=[UNPACK], extra_references=[_ANY])
    _load(mover, wire, pack(image_tar.read_bytes()), store)
    assert _names(wire) == {IMAGE: image.manifest}
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")
    assert ctr("run", "--rm", IMAGE, unique, "echo", "imported").out == "imported\n"
    assert not wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses


@pytest.mark.parametrize("compress", [False, True])
def test_what_docker_saves(
    mover: Mover, wire: Wire, ctr: Ctr, image_tar: Path, tmp_path: Path, compress: bool
) -> None:
    saved = tmp_path / "saved.tar"
    skopeo("copy", f"oci-archive:{image_tar}", f"docker-archive:{saved}:some/app:1")
    store = types.ImageStore(platforms=[HERE], unpacks=[UNPACK], extra_references=[_ANY])
    _load(mover, wire, saved.read_bytes(), store, force_compress=compress)
    assert set(_names(wire)) == {"docker.io/some/app:1"}
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")
    (listed,) = ctr("i", "ls").rows()
    assert "docker" in listed[1]
    # The same archive imported by ctr itself is the same image.
    other = Ctr(wire.address, wire.namespace)
    other("i", "rm", "docker.io/some/app:1")
    if not compress:
        other("i", "import", str(saved))
        assert other("i", "ls").rows()[0][2] == listed[2]


@pytest.mark.parametrize(
    ("rules", "name", "names"),
    [
        ([], "mine:1", ["mine:1"]),
        ([("test", {})], "", []),
        ([("docker.io/test", {})], "", [IMAGE]),
        ([("test", {"allow_overwrite": True})], "", [IMAGE]),
        ([("docker.io/test", {"add_digest": True})], "", [IMAGE, "docker.io/test@{}"]),
        (
            [("docker.io/test", {"add_digest": True, "skip_named_digest": True})],
            "",
            [IMAGE],
        ),
        ([("other", {"add_digest": True})], "", ["other@{}"]),
    ],
)
def test_names_of_an_import(
    mover: Mover,
    wire: Wire,
    image: Image,
    image_tar: Path,
    rules: list[tuple[str, dict[str, bool]]],
    name: str,
    names: list[str],
) -> None:
    references = [
        types.ImageReference(name=prefix, is_prefix=True, **more) for prefix, more in rules
    ]
    store = types.ImageStore(name=name, extra_references=references)
    if not names:
        with wire.refused(grpc.StatusCode.NOT_FOUND, "no image name found"):
            _load(mover, wire, image_tar.read_bytes(), store)
        return
    _load(mover, wire, image_tar.read_bytes(), store)
    expected = {one.format(image.manifest) for one in names}
    found = _names(wire)
    # containerd names the index, where there is one for a whole, so by its own digest.
    assert {one for one in found if "@" not in one} == {one for one in expected if "@" not in one}
    assert expected <= set(found)


def test_what_comes_in_goes_out(mover: Mover, wire: Wire) -> None:
    """From a stream to a stream nothing is read, and both end."""
    data = bytes(range(256)) * 1000
    receiving = Receiving(wire)
    id, stream = sending(wire, data)
    try:
        mover.transfer(
            types.ImageImportStream(stream=id), types.ImageExportStream(stream=receiving.id)
        )
    finally:
        stream.close()
        found = receiving.close()
    assert found == data


def test_what_is_there_is_the_lease_s(
    mover: Mover, wire: Wire, image: Image, image_tar: Path
) -> None:
    """Also what an archive brings a second time."""
    store = types.ImageStore(extra_references=[_ANY])
    _load(mover, wire, image_tar.read_bytes(), store)
    keeper = wire.leases.Create(leases_pb2.CreateRequest(id="keeper")).lease.id
    under = wire.scoped(lease=keeper)
    try:
        _load(Mover(under), under, image_tar.read_bytes(), store)
    finally:
        under.close()
    resources = wire.leases.ListResources(leases_pb2.ListResourcesRequest(id=keeper)).resources
    assert {image.manifest, image.config, *image.layers} <= {one.id for one in resources}


def test_an_export_is_read_by_others(
    mover: Mover, wire: Wire, ctr: Ctr, image: Image, image_tar: Path, tmp_path: Path
) -> None:
    ctr("i", "import", "--all-platforms", str(image_tar))
    data = _save(mover, wire, types.ImageStore(name=IMAGE))
    assert data == _save(mover, wire, types.ImageStore(name=IMAGE))
    path = tmp_path / "out.tar"
    path.write_bytes(data)
    found = json.loads(skopeo("inspect", f"oci-archive:{path}:1"))
    assert found["Digest"] == image.manifest
    assert found["Layers"] == image.layers
    assert json.loads(skopeo("inspect", f"docker-archive:{path}"))["Layers"]
    layout = tmp_path / "layout"
    layout.mkdir()
    with tarfile.open(path) as archive:
        archive.extractall(layout, filter="data")
    subprocess.run(
        ["umoci", "unpack", "--rootless", "--image", f"{layout}:1", str(tmp_path / "bundle")],
        check=True,
        capture_output=True,
    )
    ctr("i", "rm", IMAGE)
    ctr("i", "import", str(path))
    assert _names(wire) == {IMAGE: image.manifest}


def test_an_export_of_several_with_options(
    mover: Mover, wire: Wire, ctr: Ctr, image_tar: Path
) -> None:
    ctr("i", "import", "--all-platforms", str(image_tar))
    ctr("i", "tag", IMAGE, "docker.io/test/other:2")
    other = types.ImageReference(name="docker.io/test/other:2")
    store = types.ImageStore(name=IMAGE, extra_references=[other])
    members = _members(_save(mover, wire, store))
    assert list(members) == sorted(members)
    index = json.loads(members["index.json"])
    named = [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]
    assert named == [IMAGE, "docker.io/test/other:2"]
    (docker,) = json.loads(members["manifest.json"])
    assert docker["RepoTags"] == ["test/busybox:1", "test/other:2"]
    bare = _members(_save(mover, wire, store, skip_compatibility_manifest=True))
    assert set(members) - set(bare) == {"manifest.json"}


def _two_platforms() -> tuple[bytes, str, Image, Image]:
    """An archive with an index of two images, one of them for here; the index's digest."""
    amd, arm = build([[Member("a", b"amd")]]), build([[Member("a", b"arm")]])
    blobs = {**amd.blobs, **arm.blobs}
    manifests = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest,
            "size": len(image.blobs[image.manifest]),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for image, architecture in ((amd, "amd64"), (arm, "arm64"))
    ]
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).encode()
    blobs[sha256(index)] = index
    entry = {
        "mediaType": kind,
        "digest": sha256(index),
        "size": len(index),
        "annotations": {"io.containerd.image.name": "docker.io/test/two:1"},
    }
    top = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode()
    members = [Member(f"blobs/sha256/{digest[7:]}", data) for digest, data in blobs.items()]
    layout = Member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    return tar([layout, Member("index.json", top), *members]), sha256(index), amd, arm


def test_platforms(mover: Mover, wire: Wire) -> None:
    data, index, amd, arm = _two_platforms()
    _load(mover, wire, data, types.ImageStore(extra_references=[_ANY]))
    assert _names(wire) == {"docker.io/test/two:1": index}
    store = types.ImageStore(name="docker.io/test/two:1")

    def layers(**more: Any) -> tuple[bool, bool]:
        members = _members(_save(mover, wire, store, **more))
        names = [f"blobs/sha256/{image.layers[0][7:]}" for image in (amd, arm)]
        return names[0] in members, names[1] in members

    other = types_pb2.Platform(os="linux", architecture="arm64")
    assert layers() == (True, False)
    assert layers(platforms=[other]) == (False, True)
    assert layers(all_platforms=True) == (True, True)
    nowhere = types_pb2.Platform(os="linux", architecture="s390x")
    with wire.refused(grpc.StatusCode.NOT_FOUND, "no manifest found for platform linux/s390x"):
        layers(platforms=[nowhere])
    wire.content.Delete(content_pb2.DeleteContentRequest(digest=arm.layers[0]))
    with wire.refused(grpc.StatusCode.NOT_FOUND, arm.layers[0]):
        layers(all_platforms=True)
    assert layers() == (True, False)


def test_a_tag(mover: Mover, wire: Wire, ctr: Ctr, image: Image, image_tar: Path) -> None:
    ctr("i", "import", str(image_tar))
    mover.transfer(
        types.ImageStore(name=IMAGE), types.ImageStore(name="other:1", labels={"a": "b"})
    )
    found = wire.images.Get(images_pb2.GetImageRequest(name="other:1")).image
    assert (found.target.digest, dict(found.labels)) == (image.manifest, {"a": "b"})
    with wire.refused(grpc.StatusCode.NOT_FOUND, "absent"):
        mover.transfer(types.ImageStore(name="absent"), types.ImageStore(name="x"))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "unrecognized image format"),
        ([Member("a", b"x")], "unrecognized image format"),
        ([Member("oci-layout", b"{}")], "oci-layout: "),
        ([Member("oci-layout", b'{"imageLayoutVersion":"2.0"}')], "OCI layout '2.0'"),
        ([Member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')], "has no index.json"),
        ([Member("manifest.json", b"{")], "manifest.json: "),
        (
            [Member("manifest.json", b'[{"Config":"c","Layers":[]}]')],
            "image config 'c' is not in it",
        ),
        (
            [Member("blobs/sha256/" + "0" * 64, b"x")],
            "has other bytes than its name says",
        ),
    ],
)
def test_archives_that_are_none(
    mover: Mover, wire: Wire, members: list[Member], words: str
) -> None:
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, words):
        _load(mover, wire, tar(members), types.ImageStore(name="x"))
    assert not _names(wire)
    assert not wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses


@pytest.mark.parametrize("cut", [0, 100, 5_000, 300_000])
def test_an_archive_that_ends_early(mover: Mover, wire: Wire, image_tar: Path, cut: int) -> None:
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "archive: "):
        _load(mover, wire, image_tar.read_bytes()[:cut], types.ImageStore(name="x"))
    assert not wire.content.ListStatuses(content_pb2.ListStatusesRequest()).statuses
