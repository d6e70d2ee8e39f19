"""An image, and a registry that holds it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from supervisord.images.hosts.endpoint import Endpoint
from supervisord.images.reference import parse
from supervisord.images.registry.keeper import NOBODY
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import Patience, session
from tests.conformance.ocitar import Image, Member, build
from tests.registries.faults import Proxy, proxy
from tests.registries.server import Server, fill, server

PATIENT = Patience(stall=5.0, dial=5.0, attempts=3)
"""Fewer attempts, so that what fails does so soon."""


@pytest.fixture(scope="session")
def image() -> Image:
    """Two layers, one of them large enough to be cut."""
    noise = random.Random(1).randbytes(400_000)  # noqa: S311 - the same each time
    return build([[Member("a", b"1")], [Member("noise", noise)]])


@pytest.fixture(scope="session")
def archive(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, for skopeo."""
    path = tmp_path_factory.mktemp("archive") / "image.tar"
    return image.write(path, "test:1")


@pytest.fixture(scope="session")
def registry(
    lasting: Callable[[], AbstractContextManager[None]],
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A registry without any guard, with the image as ``some/image:1``."""
    with lasting(), server(tmp_path_factory.mktemp("plain")) as found:
        fill(found, archive, "some/image:1")
        yield found


@pytest.fixture
async def faulty(registry: Server) -> AsyncIterator[Proxy]:
    """A proxy before it."""
    async with proxy(registry.address) as found:
        yield found


@pytest.fixture
async def through(faulty: Proxy) -> AsyncIterator[Repository]:
    """The image's repository by way of the proxy."""
    endpoint = Endpoint(faulty.address, "http")
    async with session(endpoint, NOBODY, PATIENT) as asked:
        yield Repository(parse(f"{faulty.address}/some/image:1"), [asked])
