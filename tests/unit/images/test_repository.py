"""A repository of Debian's registry: resolved and read, with whatever guards it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path

import pytest

from supervisord.contracts.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from supervisord.credentials.secret import Secret
from supervisord.images.hosts.endpoint import Capability, Endpoint, Tls
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.reference import parse
from supervisord.images.registry.connections import Access, connected
from supervisord.images.registry.keeper import NOBODY, Given, Keeper
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import session
from tests.conformance.ocitar import Image
from tests.registries.certificates import Authority
from tests.registries.faults import Fault, Proxy
from tests.registries.server import PASSWORD, USER, Server, fill, needed, server, skopeo
from tests.registries.tokens import REFRESH, TokenServer
from tests.unit.images.conftest import PATIENT

pytestmark = needed

ALL = Capability.ALL
Lasting = Callable[[], AbstractContextManager[None]]


async def _read(repository: Repository, descriptor: Descriptor) -> bytes:
    async with repository.open(descriptor) as body:
        return b"".join([chunk async for chunk in body.chunks()])


async def _all(address: str, endpoint: Endpoint, keeper: Keeper, image: Image) -> None:
    """Resolves the image by its tag, and reads a layer."""
    async with session(endpoint, keeper, PATIENT) as asked:
        repository = Repository(parse(f"{address}/some/image:1"), [asked])
        found = await repository.resolve()
        assert (found.digest, found.media_type) == (image.manifest, media.MANIFEST)
        layer = Descriptor(media.LAYER, image.layers[0], len(image.blobs[image.layers[0]]))
        assert await _read(repository, layer) == image.blobs[image.layers[0]]


async def test_an_open_registry(registry: Server, image: Image) -> None:
    await _all(registry.address, Endpoint(registry.address, "http"), NOBODY, image)


async def test_connections_by_what_is_configured(registry: Server, image: Image) -> None:
    """On loopback TLS is tried first, and given up for plain HTTP."""
    reference = parse(f"{registry.address}/some/image:1")
    async with connected(reference, Access(), PATIENT) as repository:
        assert (await repository.resolve()).digest == image.manifest


async def test_what_is_not_there(registry: Server, image: Image) -> None:
    async with session(Endpoint(registry.address, "http"), NOBODY) as asked:
        for text in ("some/image:2", "no/such:1", f"some/image@sha256:{'0' * 64}"):
            repository = Repository(parse(f"{registry.address}/{text}"), [asked])
            with pytest.raises(NotFound, match=f"{re.escape(text)}: not found"):
                await repository.resolve()
        with pytest.raises(NotFound, match="neither a tag nor a digest"):
            await Repository(parse(f"{registry.address}/some/image"), [asked]).resolve()
        repository = Repository(parse(f"{registry.address}/some/image"), [asked])
        lost = Descriptor(media.LAYER, f"sha256:{'0' * 64}", 1)
        with pytest.raises(NotFound, match=r"@sha256:0+: not found"):
            await _read(repository, lost)


async def test_by_digest(registry: Server, image: Image) -> None:
    async with session(Endpoint(registry.address, "http"), NOBODY) as asked:
        text = f"{registry.address}/some/image:other@{image.manifest}"
        found = await Repository(parse(text), [asked]).resolve()
        assert (found.digest, found.size) == (image.manifest, len(image.blobs[image.manifest]))


async def test_a_blob_that_is_no_manifest(faulty: Proxy, through: Repository, image: Image) -> None:
    """Registries of old have some manifests among the blobs."""
    faulty.faults.append(Fault("manifests", status=404, heads=True))
    repository = Repository(parse(f"h.io/some/image@{image.layers[0]}"), through.able(ALL))
    blob = await repository.resolve()
    assert (blob.digest, blob.media_type) == (image.layers[0], media.UNKNOWN)
    assert blob.size == len(image.blobs[image.layers[0]])


@pytest.mark.parametrize("drop", ["Docker-Content-Digest", "Content-Length"])
async def test_without_the_headers_the_manifest_is_read(
    faulty: Proxy, through: Repository, image: Image, drop: str
) -> None:
    faulty.faults.append(Fault("manifests", drop=(drop,)))
    faulty.drop_from_head = drop
    found = await through.resolve()
    assert (found.digest, found.size) == (image.manifest, len(image.blobs[image.manifest]))
    assert len(faulty.asked("manifests")) == 1


async def test_a_server_that_nobody_knows(tmp_path: Path, archive: Path, image: Image) -> None:
    authority = Authority(tmp_path / "ca")
    with server(tmp_path, authority=authority) as guarded:
        fill(guarded, archive, "some/image:1")
        address = guarded.address
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await _all(address, Endpoint(address), NOBODY, image)
        await _all(address, Endpoint(address, tls=Tls(skip_verify=True)), NOBODY, image)
        known = Tls(ca=(str(authority.certificate),))
        await _all(address, Endpoint(address, tls=known), NOBODY, image)
        with pytest.raises(InvalidArgument, match=r"absent.crt: No such file"):
            await _all(address, Endpoint(address, tls=Tls(ca=("/absent.crt",))), NOBODY, image)


async def test_a_server_that_wants_to_know_us(tmp_path: Path, archive: Path, image: Image) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("127.0.0.2")
    with server(tmp_path, authority=authority, client_authority=True) as guarded:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "client.cert").symlink_to(certificate)
        (mine / "client.key").symlink_to(key)
        target = f"docker://{guarded.address}/some/image:1"
        skopeo(
            "copy",
            "--dest-tls-verify=false",
            f"--dest-cert-dir={mine}",
            f"oci-archive:{archive}",
            target,
        )
        address, ca = guarded.address, (str(authority.certificate),)
        tls = Tls(ca=ca, client=((str(certificate), str(key)),))
        await _all(address, Endpoint(address, tls=tls), NOBODY, image)
        with pytest.raises(Unavailable):
            await _all(address, Endpoint(address, tls=Tls(ca=ca)), NOBODY, image)


@pytest.fixture(scope="module")
def locked(
    lasting: Lasting, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A registry with a password."""
    with lasting(), server(tmp_path_factory.mktemp("locked"), password=True) as found:
        fill(found, archive, "some/image:1", password=True)
        yield found


async def test_a_password(locked: Server, image: Image) -> None:
    endpoint = Endpoint(locked.address, "http")
    await _all(locked.address, endpoint, Given(Secret(USER, PASSWORD)), image)
    with pytest.raises(Unauthenticated, match="wants a user and a password"):
        await _all(locked.address, endpoint, NOBODY, image)
    before = len(locked.requests("GET /v2/"))
    with pytest.raises(Unauthenticated, match=r"access denied: .*authentication required"):
        await _all(locked.address, endpoint, Given(Secret(USER, "wrong")), image)
    assert len(locked.requests("GET /v2/")) - before <= 2  # it does not try forever


@pytest.fixture(scope="module")
def tokens(lasting: Lasting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    found = TokenServer(Authority(tmp_path_factory.mktemp("ca")))
    with lasting(), found.serving():
        yield found


@pytest.fixture(scope="module")
def tokened(
    lasting: Lasting,
    tokens: TokenServer,
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A registry behind a token server."""
    with lasting(), server(tmp_path_factory.mktemp("tokened"), token=tokens.table) as found:
        fill(found, archive, "some/image:1", password=True)
        yield found


@pytest.mark.parametrize(
    ("secret", "oauth", "asked"),
    [
        (Secret(), True, ["GET anonymous"]),
        (Secret(USER, PASSWORD), True, ["POST password"]),
        (Secret(USER, PASSWORD), False, ["POST password", f"GET {USER}"]),
        (Secret("", REFRESH), True, ["POST refresh_token"]),
    ],
)
async def test_tokens(
    tokens: TokenServer,
    tokened: Server,
    image: Image,
    secret: Secret,
    oauth: bool,
    asked: list[str],
) -> None:
    tokens.asked.clear()
    tokens.oauth = oauth
    await _all(tokened.address, Endpoint(tokened.address, "http"), Given(secret), image)
    assert tokens.asked == asked  # once for all requests


async def test_a_wrong_password_at_the_token_server(
    tokens: TokenServer, tokened: Server, image: Image
) -> None:
    tokens.oauth = True
    with pytest.raises(Unauthenticated, match=r"token from http.*401.*UNAUTHORIZED: who"):
        await _all(
            tokened.address,
            Endpoint(tokened.address, "http"),
            Given(Secret(USER, "wrong")),
            image,
        )


async def test_a_token_that_a_client_brings(
    tokens: TokenServer, tokened: Server, image: Image
) -> None:
    tokens.asked.clear()
    header = f"Bearer {tokens.token(['repository:some/image:pull'])}"
    await _all(
        tokened.address, Endpoint(tokened.address, "http"), Given(Secret(header=header)), image
    )
    assert tokens.asked == []


async def test_a_token_that_is_forgotten_is_fetched_again(
    tokens: TokenServer, tokened: Server, image: Image
) -> None:
    tokens.asked.clear()
    tokens.oauth = True
    reference = parse(f"{tokened.address}/some/image:1")
    async with session(Endpoint(tokened.address, "http"), NOBODY) as asked:
        tokens.seconds = -100  # over before it is shown, whatever we think of it
        try:
            with pytest.raises(Unauthenticated, match="access denied"):
                await Repository(reference, [asked]).resolve()
        finally:
            tokens.seconds = 300
        assert (await Repository(reference, [asked]).resolve()).digest == image.manifest


async def test_mirrors_in_order(faulty: Proxy, registry: Server, image: Image) -> None:
    """One that is not reached, one that may not say what a tag is, then the registry itself."""
    endpoints = (
        Endpoint("127.0.0.1:9", "http"),
        Endpoint(faulty.address, "http", capabilities=Capability.PULL, header={"X-K": ("1",)}),
        Endpoint(registry.address, "http"),
    )
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(session(endpoint, NOBODY, PATIENT))
            for endpoint in endpoints
        ]
        repository = Repository(parse("docker.io/some/image:1"), sessions)
        target = await repository.resolve()
        assert target.digest == image.manifest
        assert faulty.asked("manifests", "HEAD") == []
        assert await _read(repository, target) == image.blobs[image.manifest]
        (seen,) = faulty.asked("manifests")
        assert seen.path.endswith("?ns=docker.io")
        assert seen.headers["x-k"] == "1"
        faulty.faults.append(Fault("blobs", status=404))
        layer = Descriptor(media.LAYER, image.layers[0], 1)
        assert await _read(repository, layer) == image.blobs[image.layers[0]]


async def test_credentials_do_not_follow_a_redirect(
    faulty: Proxy, locked: Server, image: Image
) -> None:
    """Neither the password nor the headers of a server go to another one."""
    faulty.target = locked.address
    faulty.faults.append(
        Fault("blobs", redirect=f"http://localhost:{faulty.address[10:]}", times=1)
    )
    endpoint = Endpoint(faulty.address, "http", header={"X-Key": ("1",)})
    async with session(endpoint, Given(Secret(USER, PASSWORD)), PATIENT) as asked:
        repository = Repository(parse(f"{faulty.address}/some/image:1"), [asked])
        await repository.resolve()
        layer = Descriptor(media.LAYER, image.layers[0], 1)
        with pytest.raises(Unauthenticated):  # the other one knows us no more than a stranger
            await _read(repository, layer)
    first, second, *_ = faulty.asked("blobs")
    assert "authorization" in first.headers
    assert first.headers["x-key"] == "1"
    assert second.headers["host"].startswith("localhost")
    assert "authorization" not in second.headers
    assert "x-key" not in second.headers


async def test_redirects_that_go_round(faulty: Proxy, through: Repository) -> None:
    faulty.faults.append(Fault("blobs", redirect=f"http://{faulty.address}"))
    with pytest.raises(Unavailable, match="more than 10 redirects"):
        await _read(through, Descriptor(media.LAYER, f"sha256:{'0' * 64}", 1))


async def test_a_redirect_to_something_else(faulty: Proxy, through: Repository) -> None:
    faulty.faults.append(Fault("blobs", redirect="file:///etc/passwd?"))
    with pytest.raises(Unavailable, match="redirected to 'file:"):
        await _read(through, Descriptor(media.LAYER, f"sha256:{'0' * 64}", 1))


async def test_a_busy_server_is_asked_again(
    faulty: Proxy, through: Repository, image: Image
) -> None:
    faulty.faults.append(Fault("manifests", status=429, headers={"Retry-After": "0"}, times=1))
    faulty.faults.append(Fault("manifests", status=503, times=1))
    target = Descriptor(media.MANIFEST, image.manifest, 1)
    assert await _read(through, target) == image.blobs[image.manifest]
    assert len(faulty.asked("manifests")) == 3


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [(500, Unavailable, 3), (403, PermissionDenied, 1), (400, InvalidArgument, 1)],
)
async def test_refusals(
    faulty: Proxy, through: Repository, status: int, error: type[Exception], asked: int
) -> None:
    faulty.faults.append(Fault("blobs", status=status))
    with pytest.raises(error):
        await _read(through, Descriptor(media.LAYER, f"sha256:{'0' * 64}", 1))
    assert len(faulty.asked("blobs")) == asked


async def test_the_first_kind_of_manifests(faulty: Proxy, through: Repository) -> None:
    faulty.media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    with pytest.raises(Unimplemented, match="docker's first kind of manifest"):
        await through.resolve()
