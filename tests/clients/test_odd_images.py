"""Images that are allowed but rare, and ones that are wrong: pulled from Debian's registry.

Debian's containerd (1.6) has no Transfer service, so these are of ours alone.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.services.images.v1 import images_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from tests.clients.transferring import Mover
from tests.conformance.ctr import Ctr
from tests.conformance.ocitar import CONFIG, INDEX, MANIFEST, Member, busybox_layer, compress, tar
from tests.conformance.wire import Wire
from tests.registries.faults import Fault, threaded
from tests.registries.server import Server, needed, put_manifest, server

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

Lasting = Callable[[], AbstractContextManager[None]]
Descriptor = dict[str, Any]


@pytest.fixture(scope="module")
def registry(lasting: Lasting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with lasting(), server(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def mover(wire: Wire) -> Mover:
    return Mover(wire)


def _put(registry: Server, data: bytes, kind: str, algorithm: str = "sha256") -> Descriptor:
    """A blob in the registry."""
    digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    root = f"http://{registry.address}"
    asked = f"{root}/v2/odd/blobs/uploads/"
    begun = urllib.request.Request(asked, b"", method="POST")  # noqa: S310 - http
    with urllib.request.urlopen(begun, timeout=10) as answer:  # noqa: S310 - http
        location = answer.headers["Location"]
    url = location if "://" in location else root + location
    headers = {"Content-Type": "application/octet-stream"}
    asked = f"{url}&digest={digest}"
    put = urllib.request.Request(asked, data, headers, method="PUT")  # noqa: S310 - http
    with urllib.request.urlopen(put, timeout=10) as answer:  # noqa: S310 - http
        assert answer.status == 201
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def _layer(
    registry: Server, members: Sequence[Member], kind: str = "gzip", algorithm: str = "sha256"
) -> tuple[Descriptor, str]:
    """A layer, and its diff-id."""
    plain = tar(members)
    media_type, blob = compress(plain, kind)
    diff_id = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    return _put(registry, blob, media_type, algorithm), diff_id


def _image(
    registry: Server,
    tag: str,
    layers: Sequence[tuple[Descriptor, str]],
    config: Mapping[str, Any] | None = None,
    **more: Any,
) -> str:
    """An image under a tag; its reference."""
    value = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    data = json.dumps(value if config is None else config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(registry, data, CONFIG),
        "layers": [layer for layer, _ in layers],
        **more,
    }
    put_manifest(registry, "odd", tag, manifest)
    return f"{registry.address}/odd:{tag}"


def _snapshots(wire: Wire) -> int:
    request = snapshots_pb2.ListSnapshotsRequest(snapshotter="overlayfs")
    return sum(len(page.info) for page in wire.snapshots.List(request))


def _runs(ctr: Ctr, name: str, unique: str) -> None:
    (row,) = ctr("i", "check").rows()
    assert (row[3], row[-1]) == ("complete", "true")
    assert ctr("run", "--rm", name, unique, "echo", "odd").out == "odd\n"


def test_the_same_layer_twice(
    mover: Mover, ctr: Ctr, wire: Wire, registry: Server, unique: str
) -> None:
    """Next to itself and apart: one blob, and a snapshot for each place."""
    root = _layer(registry, [*busybox_layer(), Member("twice", b"1")])
    other = _layer(registry, [Member("other", b"1")])
    name = _image(registry, "twice", [root, other, other, root])
    mover.pull(name)
    assert _snapshots(wire) == 4
    _runs(ctr, name, unique)


@pytest.mark.parametrize("kind", ["zstd", "none"])
def test_other_compressions(
    mover: Mover, ctr: Ctr, registry: Server, unique: str, kind: str
) -> None:
    root = _layer(registry, [*busybox_layer(), Member(f"as {kind}", b"1")], kind)
    name = _image(registry, kind, [root])
    mover.pull(name)
    _runs(ctr, name, unique)


def test_a_layer_with_nothing_in_it(mover: Mover, ctr: Ctr, registry: Server, unique: str) -> None:
    """As docker writes for each line of a Dockerfile that changes no file."""
    root = _layer(registry, [*busybox_layer(), Member("and nothing", b"1")])
    name = _image(registry, "nothing", [root, _layer(registry, [])])
    mover.pull(name)
    _runs(ctr, name, unique)


def test_no_layer_at_all(mover: Mover, wire: Wire, registry: Server) -> None:
    name = _image(registry, "scratch", [])
    mover.pull(name)
    assert wire.images.Get(images_pb2.GetImageRequest(name=name)).image.target.digest
    assert _snapshots(wire) == 0


def test_longer_digests(mover: Mover, ctr: Ctr, wire: Wire, registry: Server, unique: str) -> None:
    root = _layer(registry, [*busybox_layer(), Member("sha512", b"1")], algorithm="sha512")
    name = _image(registry, "sha512", [root])
    mover.pull(name)
    digest = root[0]["digest"]
    assert digest.startswith("sha512:")
    assert wire.content.Info(content_pb2.InfoRequest(digest=digest)).info.size == root[0]["size"]
    assert ctr("run", "--rm", name, unique, "echo", "odd").out == "odd\n"


def test_what_newer_manifests_say(mover: Mover, ctr: Ctr, registry: Server, unique: str) -> None:
    """Fields of OCI 1.1 change nothing of an image, and what nobody knows is passed over."""
    root = _layer(registry, [*busybox_layer(), Member("newer", b"1")])
    subject = {"mediaType": MANIFEST, "digest": "sha256:" + "1" * 64, "size": 7}
    name = _image(
        registry,
        "newer",
        [root],
        annotations={"a": "b"},
        artifactType="application/vnd.example+type",
        subject=subject,
        futureField={"x": [1, 2]},
    )
    mover.pull(name)
    _runs(ctr, name, unique)


def test_an_artifact(mover: Mover, wire: Wire, registry: Server) -> None:
    """No image to run: all of it is brought, nothing is unpacked. What the document has itself is
    not asked for."""
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
        "data": "e30=",
    }
    _put(registry, b"{}", empty["mediaType"])  # type: ignore[arg-type]
    blob = _put(registry, b"a chart, a model, a policy", "application/vnd.example.thing")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.thing",
        "config": empty,
        "layers": [blob],
    }
    put_manifest(registry, "odd", "artifact", manifest)
    before = len(registry.requests('"GET ', str(empty["digest"])))
    mover.pull(f"{registry.address}/odd:artifact")
    for digest in (empty["digest"], blob["digest"]):
        assert wire.content.Info(content_pb2.InfoRequest(digest=digest)).info.size  # type: ignore[arg-type]
    assert len(registry.requests('"GET ', str(empty["digest"]))) == before
    assert _snapshots(wire) == 0


def test_an_index_within_an_index(mover: Mover, ctr: Ctr, registry: Server, unique: str) -> None:
    """With an attestation beside the image, as buildkit writes."""
    root = _layer(registry, [*busybox_layer(), Member("nested", b"1")])
    _image(registry, "inner", [root])
    attestation = _image(registry, "attestation", [], {"architecture": "unknown", "os": "unknown"})
    entries = []
    for tag, platform in (("inner", ("linux", "amd64")), ("attestation", ("unknown", "unknown"))):
        url = f"http://{registry.address}/v2/odd/manifests/{tag}"
        request = urllib.request.Request(url, headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http
            data = answer.read()
        os, architecture = platform
        entries.append(
            {
                "mediaType": MANIFEST,
                "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
                "size": len(data),
                "platform": {"os": os, "architecture": architecture},
            }
        )
    assert attestation
    inner = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    put_manifest(registry, "odd", "index", inner)
    data = json.dumps(inner).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    outer = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{"mediaType": INDEX, "digest": digest, "size": len(data)}],
    }
    put_manifest(registry, "odd", "nested", outer)
    name = f"{registry.address}/odd:nested"
    mover.pull(name)
    assert ctr("run", "--rm", name, unique, "echo", "odd").out == "odd\n"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "amd64", "os": "linux"}, "0 diff-ids for the manifest's 1 layers"),
        ({"architecture": "amd64", "os": "linux", "rootfs": {"type": "disk"}}, "rootfs.type"),
        ({"os": "linux", "rootfs": {"diff_ids": ["md5:1"]}}, "is no digest"),
        ({"rootfs": 7}, "rootfs"),
    ],
)
def test_a_config_that_does_not_fit(
    mover: Mover, wire: Wire, registry: Server, unique: str, config: dict[str, Any], words: str
) -> None:
    layer = _layer(registry, [Member("a", b"1")])
    name = _image(registry, unique, [layer], config)
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, words):
        mover.pull(name)
    assert not wire.images.List(images_pb2.ListImagesRequest()).images
    assert _snapshots(wire) == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [(MANIFEST, "has what an index or an old manifest"), (INDEX, "has the config or layers")],
)
def test_a_manifest_that_is_an_index_too(
    mover: Mover, wire: Wire, registry: Server, kind: str, words: str
) -> None:
    """CVE-2021-41190: what one reader takes for an image, another takes for a list of others.
    Debian's registry refuses such, so a bad one is played."""
    one = {"mediaType": CONFIG, "digest": "sha256:" + "1" * 64, "size": 1}
    both = {"schemaVersion": 2, "config": one, "layers": [], "manifests": [one]}
    with threaded(registry.address) as bad:
        headers = {"Content-Type": kind}
        text = json.dumps(both)
        bad.faults.append(Fault("manifests", status=200, heads=True, headers=headers, text=text))
        with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, words):
            mover.pull(f"{bad.address}/odd:confusing")
    assert not wire.images.List(images_pb2.ListImagesRequest()).images


def test_a_manifest_that_is_too_large(mover: Mover, wire: Wire, registry: Server) -> None:
    with threaded(registry.address) as bad:
        text = json.dumps({"annotations": {"a": "b" * (4 << 20)}})
        headers = {"Content-Type": MANIFEST}
        bad.faults.append(Fault("manifests", status=200, heads=True, headers=headers, text=text))
        with wire.refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "a manifest of"):
            mover.pull(f"{bad.address}/odd:large")
