"""What registries and the caches before them do, and should not: pulls and pushes go on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from supervisord.contracts.errors import (
    DataLoss,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from supervisord.images.hosts.endpoint import Capability, Endpoint
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.pull.bytes import blob_bytes
from supervisord.images.reference import parse
from supervisord.images.registry import encodings
from supervisord.images.registry.keeper import NOBODY
from supervisord.images.registry.listing import referrers, tags
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import session
from supervisord.images.registry.uploads import Uploads
from tests.conformance.ocitar import Image, sha256
from tests.registries.faults import Fault, Proxy, proxy
from tests.registries.server import Server, needed
from tests.unit.images.conftest import PATIENT

pytestmark = needed

SUBJECT = "sha256:" + "5" * 64
DEAD = "127.0.0.1:9"


@asynccontextmanager
async def _asked(name: str, endpoints: Sequence[Endpoint]) -> AsyncIterator[Repository]:
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(session(endpoint, NOBODY, PATIENT))
            for endpoint in endpoints
        ]
        yield Repository(parse(name), sessions)


def _layer(image: Image, number: int = 1) -> Descriptor:
    digest = image.layers[number]
    return Descriptor(media.LAYER, digest, len(image.blobs[digest]))


async def _read(repository: Repository, descriptor: Descriptor, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in blob_bytes(repository, descriptor, offset)])


async def test_a_mirror_that_fails_is_asked_once(
    faulty: Proxy, registry: Server, image: Image
) -> None:
    """Whoever is not the last is not waited for."""
    faulty.faults.append(Fault("some/image", status=503, heads=True))
    endpoints = [Endpoint(faulty.address, "http"), Endpoint(registry.address, "http")]
    async with _asked("docker.io/some/image:1", endpoints) as repository:
        assert (await repository.resolve()).digest == image.manifest
        assert await _read(repository, _layer(image)) == image.blobs[image.layers[1]]
    assert [seen.method for seen in faulty.seen] == ["HEAD", "GET"]


async def test_a_mirror_that_is_not_reached_is_asked_last(registry: Server, image: Image) -> None:
    endpoints = [Endpoint(DEAD, "http"), Endpoint(registry.address, "http")]
    async with _asked("docker.io/some/image:1", endpoints) as repository:
        assert repository.in_turn(Capability.PULL)[0][0].endpoint.host == DEAD
        await repository.resolve()
        order = [(one.endpoint.host, tries) for one, tries in repository.in_turn(Capability.PULL)]
        assert order == [(registry.address, 1), (DEAD, 0)]


async def test_a_range_that_is_refused(faulty: Proxy, through: Repository, image: Image) -> None:
    """416 for bytes that the blob has: it is read from its beginning instead."""
    faulty.faults.append(Fault("blobs", status=416, times=1))
    layer = _layer(image)
    assert await _read(through, layer, 1000) == image.blobs[layer.digest][1000:]
    first, second = faulty.asked("blobs")
    assert first.headers["range"] == "bytes=1000-"
    assert "range" not in second.headers


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream"])
async def test_a_type_that_says_nothing(
    faulty: Proxy, through: Repository, image: Image, kind: str
) -> None:
    faulty.media_type = kind
    found = await through.resolve()
    size = len(image.blobs[image.manifest])
    assert (found.media_type, found.digest, found.size) == (media.MANIFEST, image.manifest, size)


async def test_a_page_instead_of_a_manifest(faulty: Proxy, through: Repository) -> None:
    """As a portal answers that wants to be clicked through."""
    page = {"Content-Type": "text/html; charset=utf-8"}
    faulty.faults.append(Fault("manifests", status=200, headers=page, heads=True))
    with pytest.raises(InvalidArgument, match=r"1: what the registry sent, as text/html, is no"):
        await through.resolve()


@pytest.mark.parametrize("status", [405, 403, 401])
async def test_a_head_that_is_refused(
    faulty: Proxy, through: Repository, image: Image, status: int
) -> None:
    faulty.faults.append(Fault("manifests", status=status, heads=True, times=1))
    assert (await through.resolve()).digest == image.manifest


async def test_a_refusal_says_why(faulty: Proxy, through: Repository) -> None:
    """A HEAD has no body: the reason comes with a GET."""
    faulty.faults.append(Fault("manifests", status=403, heads=True))
    with pytest.raises(PermissionDenied, match="the registry answered 403"):
        await through.resolve()
    assert [seen.method for seen in faulty.seen] == ["HEAD", "GET"]


async def test_an_answer_in_chunks(faulty: Proxy, through: Repository, image: Image) -> None:
    faulty.faults.append(Fault("blobs", drop=("Content-Length",)))
    layer = _layer(image)
    assert await _read(through, layer) == image.blobs[layer.digest]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_packed_for_the_way(
    faulty: Proxy, through: Repository, image: Image, encoding: str
) -> None:
    faulty.faults.append(Fault("some/image", encoding=encoding))
    faulty.drop_from_head = "Docker-Content-Digest"
    assert (await through.resolve()).digest == image.manifest
    layer = _layer(image)
    assert await _read(through, layer) == image.blobs[layer.digest]
    assert await _read(through, layer, 70_000) == image.blobs[layer.digest][70_000:]


async def test_packed_bodies_that_are_damaged() -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    for encoding in ("gzip", "deflate", "zstd"):
        with pytest.raises(DataLoss, match=f"content encoding {encoding} is damaged"):
            _ = [piece async for piece in encodings.decoded(encoding, chunks(b"no such thing" * 9))]
        with pytest.raises(DataLoss, match=f"content encoding {encoding} ends early"):
            _ = [piece async for piece in encodings.decoded(encoding, chunks(b""))]


async def test_an_encoding_that_nobody_knows(
    faulty: Proxy, through: Repository, image: Image
) -> None:
    faulty.faults.append(Fault("blobs", status=200, headers={"Content-Encoding": "rot13"}))
    with pytest.raises(Exception, match="was asked for plain, came as rot13"):
        await _read(through, _layer(image))


async def test_the_first_kind_of_manifest_under_another_name(
    faulty: Proxy, through: Repository
) -> None:
    """Some registries serve docker's old manifests as text."""
    old = json.dumps({"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": []})
    faulty.faults.append(Fault("manifests", status=200, heads=True, text=old))
    with pytest.raises(Unimplemented, match="docker's first kind of manifest"):
        await through.resolve()


# Pushes and lists ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_mount_that_is_refused(
    faulty: Proxy, through: Repository, image: Image, status: int
) -> None:
    """The other repository may be one that we may not read any more: the blob is sent."""
    faulty.faults.append(Fault("from=", status=status, method="POST"))
    data = f"a blob of {status}".encode()
    blob = Descriptor(media.LAYER, sha256(data), len(data))

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield data[offset:]

    assert await Uploads(through).blob(blob, read, ["secret/image"])
    assert await Uploads(through).has(blob)
    assert [seen.path for seen in faulty.seen if "from=" in seen.path]


async def test_whose_image_is_meant(faulty: Proxy, image: Image) -> None:
    """A server that stands for several registries is told so, whatever it is asked for."""
    data = b"a blob for docker.io"
    blob = Descriptor(media.LAYER, sha256(data), len(data))

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield data[offset:]

    async with _asked("docker.io/some/image:1", [Endpoint(faulty.address, "http")]) as repository:
        uploads = Uploads(repository)
        await uploads.has(blob)
        await uploads.blob(blob, read, ["other"])
        assert await uploads.tagged("1") == image.manifest
        _ = [tag async for tag in tags(repository)]
        await referrers(repository, SUBJECT)
    asked = [seen for seen in faulty.seen if seen.method != "PUT"]
    assert len(asked) >= 6
    assert all("ns=docker.io" in seen.path for seen in asked)


async def test_referrers_of_the_next_server(registry: Server, image: Image) -> None:
    """What one server cannot say, the next may; who has no referrers is asked by the tag."""
    size = len(image.blobs[image.manifest])
    one = {"mediaType": media.MANIFEST, "digest": image.manifest, "size": size}
    index = json.dumps({"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [one]}).encode()
    described = Descriptor(media.INDEX, sha256(index), len(index))
    plain = Capability.PULL | Capability.RESOLVE
    async with proxy(registry.address) as broken:
        broken.faults.append(Fault("", status=500))
        endpoints = [
            Endpoint(broken.address, "http"),
            Endpoint(registry.address, "http", capabilities=plain),
        ]
        async with _asked("docker.io/some/image:1", endpoints) as repository:
            alone = Repository(repository.reference, repository.able(Capability.REFERRERS))
            with pytest.raises(Unavailable):  # nobody could say that there are none
                await referrers(alone, SUBJECT)
            own = [Endpoint(registry.address, "http")]
            async with _asked("docker.io/some/image:1", own) as pushed:
                await Uploads(pushed).manifest(described, index, SUBJECT.replace(":", "-"))
            (found,) = await referrers(repository, SUBJECT)
            assert found.digest == image.manifest
