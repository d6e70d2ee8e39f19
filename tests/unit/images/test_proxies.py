"""Proxies of the environment: the rules, and real ones on the way to a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument, Unauthenticated, Unavailable
from supervisord.credentials.secret import Secret
from supervisord.images.hosts.endpoint import Endpoint, Tls
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.reference import parse
from supervisord.images.registry.keeper import NOBODY, Given, Keeper
from supervisord.images.registry.proxies import Proxies
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import session
from tests.conformance.ocitar import Image
from tests.registries.certificates import Authority
from tests.registries.forward import ForwardProxy
from tests.registries.server import PASSWORD, USER, Server, fill, needed, server
from tests.registries.tokens import TokenServer
from tests.unit.images.conftest import PATIENT

NAME = "registry.test:5000"


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        ("http://h.io/v2/", "", False),
        ("http://localhost:5000/", "", True),
        ("http://127.9.9.9/", "", True),
        ("https://[::1]:5000/", "", True),
        ("http://h.io/", "*", True),
        ("http://h.io/", "other.io, h.io", True),
        ("http://h.io./", "h.io", True),
        ("http://a.h.io/", "h.io", True),
        ("http://ah.io/", "h.io", False),
        ("http://a.h.io/", ".h.io", True),
        ("http://h.io/", ".h.io", False),
        ("http://a.h.io/", "*.h.io", True),
        ("http://h.io/", "*.h.io", False),
        ("http://H.io/", "h.IO", True),
        ("http://h.io:5000/", "h.io:5000", True),
        ("http://h.io/", "h.io:5000", False),
        ("https://h.io/", "h.io:443", True),
        ("http://h.io/", "h.io:443", False),
        ("http://10.1.2.3/", "10.0.0.0/8", True),
        ("http://11.1.2.3/", "10.0.0.0/8", False),
        ("http://10.1.2.3/", "10.1.2.3", True),
        ("http://10.1.2.3:80/", "10.1.2.3:5000", False),
        ("http://10.1.2.3:5000/", "10.1.2.3:5000", True),
        ("http://[fd00::1]:5000/", "fd00::/8", True),
        ("http://[fd00::1]:5000/", "[fd00::1]:5000", True),
        ("http://[fd00::1]:5000/", "[fd00::1]", True),
        ("http://[fd00::2]:5000/", "fd00::1", False),
        ("http://h.io/", "h.io:x, ,", False),
    ],
)
def test_who_is_asked_directly(url: str, no_proxy: str, direct: bool) -> None:
    proxies = Proxies({"HTTP_PROXY": "p:1", "HTTPS_PROXY": "p:2", "NO_PROXY": no_proxy})
    assert (proxies.of(url) is None) == direct


def test_which_proxy() -> None:
    both = Proxies({"HTTP_PROXY": "p:1", "https_proxy": "https://u:w@q:2", "ALL_PROXY": "r:3"})
    assert both.of("http://h.io/") == "http://p:1"
    assert both.of("https://h.io/") == "https://u:w@q:2"
    upper = Proxies({"HTTP_PROXY": "upper", "http_proxy": "lower", "no_proxy": "a.io"})
    assert upper.of("http://h.io/") == "http://upper"
    assert upper.of("http://a.io/") is None
    assert upper.of("https://h.io/") is None
    assert Proxies({"HTTP_PROXY": " "}).of("http://h.io/") is None


@pytest.mark.parametrize("value", ["socks5://p:1", "http://p:x", "http://", "://"])
def test_what_is_no_proxy(value: str) -> None:
    with pytest.raises(InvalidArgument, match="HTTPS_PROXY: "):
        Proxies({"HTTPS_PROXY": value})


@pytest.fixture
def proxied(registry: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    """A proxy that alone knows the registry's name."""
    forward = ForwardProxy({NAME: registry.address})
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{forward.address}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with forward.serving():
        yield forward


async def _all(endpoint: Endpoint, image: Image, keeper: Keeper = NOBODY) -> None:
    async with session(endpoint, keeper, PATIENT) as asked:
        repository = Repository(parse(f"{NAME}/some/image:1"), [asked])
        assert (await repository.resolve()).digest == image.manifest
        layer = Descriptor(media.LAYER, image.layers[1], len(image.blobs[image.layers[1]]))
        async with repository.open(layer) as body:
            data = b"".join([chunk async for chunk in body.chunks()])
        assert data == image.blobs[layer.digest]


@needed
async def test_by_a_proxy(proxied: ForwardProxy, image: Image) -> None:
    await _all(Endpoint(NAME, "http"), image)
    assert [method for method, _ in proxied.seen] == ["HEAD", "GET"]
    assert all(target.startswith(f"http://{NAME}/v2/") for _, target in proxied.seen)


@needed
async def test_past_the_proxy(
    proxied: ForwardProxy, registry: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the proxy's alone, so what does not go there ends."""
    monkeypatch.setenv("NO_PROXY", "registry.test")
    async with session(Endpoint(NAME, "http"), NOBODY, PATIENT) as asked:
        with pytest.raises(Unavailable, match=r"registry\.test"):
            await Repository(parse(f"{NAME}/some/image:1"), [asked]).resolve()
    async with session(Endpoint(registry.address, "http"), NOBODY, PATIENT) as asked:
        await Repository(parse(f"{registry.address}/some/image:1"), [asked]).resolve()
    assert proxied.seen == []


@needed
async def test_through_a_tunnel(
    proxied: ForwardProxy, image: Image, archive: Path, tmp_path: Path
) -> None:
    """TLS is with the registry itself, whatever is between."""
    authority = Authority(tmp_path / "ca")
    with server(tmp_path, authority=authority, names=["registry.test"]) as guarded:
        fill(guarded, archive, "some/image:1")
        proxied.names[NAME] = guarded.address
        known = Tls(ca=(str(authority.certificate),))
        await _all(Endpoint(NAME, tls=known), image)
        assert set(proxied.seen) == {("CONNECT", NAME)}
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await _all(Endpoint(NAME), image)


@needed
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_wants_a_password(
    proxied: ForwardProxy,
    image: Image,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    proxied.credentials = "me:s3cret"
    authority = Authority(tmp_path / "ca") if scheme == "https" else None
    tls = Tls(ca=(str(authority.certificate),)) if authority else Tls()
    endpoint = Endpoint(NAME, scheme, tls=tls)
    with server(tmp_path, authority=authority, names=["registry.test"]) as found:
        fill(found, archive, "some/image:1")
        proxied.names[NAME] = found.address
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:wrong@{proxied.address}")
        with pytest.raises((Unauthenticated, Unavailable), match=r"proxy.* answered 407") as caught:
            await _all(endpoint, image)
        assert "wrong" not in str(caught.value)
        assert len(proxied.seen) <= 2  # it is not asked again and again
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:s3cret@{proxied.address}")
        await _all(endpoint, image)


@needed
async def test_a_proxy_that_is_not_there(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"by the proxy 127\.0\.0\.1:9: ") as caught:
        await _all(Endpoint(NAME, "http"), image)
    assert "s3cret" not in str(caught.value)


@needed
async def test_tokens_come_by_the_proxy_too(
    proxied: ForwardProxy, image: Image, archive: Path, tmp_path: Path
) -> None:
    tokens = TokenServer(Authority(tmp_path / "ca"))
    real = tokens.url.removeprefix("http://").partition("/")[0]
    table = {**tokens.table, "realm": tokens.url.replace(real, "tokens.test")}
    with tokens.serving(), server(tmp_path, token=table) as guarded:
        proxied.names.update({"tokens.test": real, NAME: guarded.address})
        fill(guarded, archive, "some/image:1", password=True)  # skopeo goes the same way
        proxied.seen.clear()
        await _all(Endpoint(NAME, "http"), image, Given(Secret(USER, PASSWORD)))
    assert ("POST", "http://tokens.test/token") in proxied.seen
