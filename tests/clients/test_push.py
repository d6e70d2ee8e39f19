"""Pushes by the Transfer service into Debian's registry; skopeo reads what arrived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.content.v1 import content_pb2
from protos.containerd.types.transfer import transfer_pb2 as types
from tests.clients.transferring import Mover, events
from tests.conformance.ctr import Ctr
from tests.conformance.fixtures import IMAGE
from tests.conformance.ocitar import Image
from tests.conformance.wire import Wire
from tests.registries.faults import threaded
from tests.registries.server import PASSWORD, USER, Server, needed, server, skopeo

pytestmark = [
    needed,
    pytest.mark.only("supervisord", reason="containerd 1.6 has no Transfer service"),
]

Lasting = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def registry(lasting: Lasting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with lasting(), server(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def mover(wire: Wire, ctr: Ctr, image_tar: Path) -> Mover:
    """With the image in the store."""
    ctr("i", "import", "--all-platforms", str(image_tar))
    return Mover(wire)


def _push(mover: Mover, reference: str, **resolver: Any) -> None:
    mover.transfer(
        types.ImageStore(name=IMAGE),
        types.OCIRegistry(reference=reference, resolver=types.RegistryResolver(**resolver)),
    )


def _inspected(reference: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        skopeo("inspect", "--no-tags", "--tls-verify=false", f"docker://{reference}")
    )
    return found


def test_what_is_pushed(mover: Mover, registry: Server, image: Image, unique: str) -> None:
    reference = f"{registry.address}/a/{unique}:1"
    _push(mover, reference)
    found = _inspected(reference)
    assert (found["Digest"], found["Layers"]) == (image.manifest, image.layers)
    for layer in image.layers:
        assert list(events(mover.progress, f"layer-{layer}"))[-1] == "complete"
    assert mover.progress[-1].event == f"Completed push to OCI Registry ({reference})"
    _push(mover, reference)
    for layer in image.layers:
        assert list(events(mover.progress, f"layer-{layer}")) == ["waiting", "already exists"]
    assert len(registry.requests('"PUT ', f"/a/{unique}/manifests/")) == 1


def test_by_a_digest(mover: Mover, wire: Wire, registry: Server, image: Image, unique: str) -> None:
    reference = f"{registry.address}/{unique}@{image.manifest}"
    _push(mover, reference)
    assert _inspected(reference)["Digest"] == image.manifest
    wrong = f"{registry.address}/{unique}@sha256:{'0' * 64}"
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, f"the image is {image.manifest}"):
        _push(mover, wrong)
    with wire.refused(grpc.StatusCode.INVALID_ARGUMENT, "a tag or a digest is needed"):
        _push(mover, f"{registry.address}/{unique}")


def test_blobs_of_another_repository_are_mounted(
    mover: Mover, ctr: Ctr, wire: Wire, registry: Server, image: Image, unique: str
) -> None:
    first = f"{registry.address}/from/{unique}:1"
    _push(mover, first)
    ctr("i", "rm", "--sync", IMAGE)
    mover.pull(first, name=IMAGE, snapshotter=None)
    before = len(registry.requests('"PUT ', "/blobs/uploads/"))
    second = f"{registry.address}/to/{unique}:1"
    _push(mover, second)
    assert len(registry.requests('"PUT ', "/blobs/uploads/")) == before
    assert _inspected(second)["Layers"] == image.layers


def test_a_blob_that_is_not_here(
    mover: Mover, wire: Wire, registry: Server, image: Image, unique: str
) -> None:
    wire.content.Delete(content_pb2.DeleteContentRequest(digest=image.layers[0]))
    reference = f"{registry.address}/{unique}:1"
    with wire.refused(grpc.StatusCode.NOT_FOUND, image.layers[0], "is not here to be pushed"):
        _push(mover, reference)
    assert not registry.requests(f"/v2/{unique}/blobs/uploads/")


def test_a_registry_with_a_password(mover: Mover, wire: Wire, image: Image, tmp_path: Path) -> None:
    with server(tmp_path, password=True) as locked:
        reference = f"{locked.address}/image:1"
        with wire.refused(grpc.StatusCode.UNAUTHENTICATED, "wants a user and a password"):
            _push(mover, reference)
        id, stream, asked = mover.answering(USER, PASSWORD)
        try:
            _push(mover, reference, auth_stream=id)
        finally:
            stream.close()
        assert len(asked) == 1


def test_an_upload_that_is_cut_goes_on(
    mover: Mover, registry: Server, image: Image, unique: str
) -> None:
    largest = max(image.layers, key=lambda layer: len(image.blobs[layer]))
    with threaded(registry.address) as faulty:
        faulty.cut_upload = len(image.blobs[largest]) // 3
        reference = f"{faulty.address}/{unique}:1"
        _push(mover, reference)
        assert faulty.cut_upload == -1  # it was cut
        patches = [seen for seen in faulty.seen if seen.method == "PATCH"]
        assert _inspected(f"{registry.address}/{unique}:1")["Layers"] == image.layers
        assert len(patches) <= 1
