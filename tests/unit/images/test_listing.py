"""Lists of a repository, and layers that are elsewhere."""

from __future__ import annotations

import hashlib
import json

import pytest

from supervisord.contracts.errors import NotFound
from supervisord.images.hosts.endpoint import Endpoint
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.reference import parse
from supervisord.images.registry.keeper import NOBODY
from supervisord.images.registry.listing import referrers, tags
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import session
from supervisord.images.registry.uploads import Uploads
from tests.conformance.ocitar import Image
from tests.registries.server import Server, needed
from tests.unit.images.conftest import PATIENT

pytestmark = needed


async def test_tags_come_in_pages(registry: Server, image: Image) -> None:
    async with session(Endpoint(registry.address, "http"), NOBODY, PATIENT) as asked:
        repository = Repository(parse(f"{registry.address}/some/image"), [asked])
        uploads = Uploads(repository)
        manifest = Descriptor(media.MANIFEST, image.manifest, len(image.blobs[image.manifest]))
        for tag in ("a", "b", "c"):
            await uploads.manifest(manifest, image.blobs[image.manifest], tag)
        assert {tag async for tag in tags(repository)} >= {"1", "a", "b", "c"}
        paged = [tag async for tag in tags(repository, page_size=1)]
        assert sorted(paged) == sorted({tag async for tag in tags(repository)})
        nowhere = Repository(parse(f"{registry.address}/no/such"), [asked])
        with pytest.raises(NotFound):
            _ = [tag async for tag in tags(nowhere)]


async def test_referrers_by_their_tag(registry: Server, image: Image) -> None:
    """Debian's registry knows no referrers API: an index under a tag says them."""
    referrer = {
        "mediaType": media.MANIFEST,
        "digest": image.manifest,
        "size": len(image.blobs[image.manifest]),
        "artifactType": "application/vnd.example.signature",
    }
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [referrer]}
    ).encode()
    digest = f"sha256:{hashlib.sha256(index).hexdigest()}"
    subject = "sha256:" + "5" * 64
    async with session(Endpoint(registry.address, "http"), NOBODY, PATIENT) as asked:
        repository = Repository(parse(f"{registry.address}/some/image"), [asked])
        assert await referrers(repository, subject) == []
        described = Descriptor(media.INDEX, digest, len(index))
        await Uploads(repository).manifest(described, index, subject.replace(":", "-"))
        (found,) = await referrers(repository, subject)
        assert found.digest == image.manifest
        assert await referrers(repository, subject, "application/vnd.example.signature")
        assert await referrers(repository, subject, "other") == []


async def test_only_layers_that_may_be_elsewhere_are_looked_for_there(registry: Server) -> None:
    digest = "sha256:" + "7" * 64
    urls = ("http://127.0.0.1:9/x", "file:///etc/passwd", "https://127.0.0.1:9/x")
    async with session(Endpoint(registry.address, "http"), NOBODY, PATIENT) as asked:
        repository = Repository(parse(f"{registry.address}/some/image"), [asked])
        for kind in (media.LAYER, f"{media.DOCKER_FOREIGN}.gzip"):
            layer = Descriptor(kind, digest, 1, urls=urls)
            with pytest.raises(NotFound, match=f"@{digest}: not found"):
                async with repository.open(layer):
                    pass
