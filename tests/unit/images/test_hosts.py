"""Endpoints of a registry: without configuration, by certificates, and by ``hosts.toml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.images.hosts.endpoint import Capability, Endpoint, Tls
from supervisord.images.hosts.folder import endpoints

_MIRRORS = """
server = "https://upstream.example/sub"
ca = "upstream.crt"

[host."http://near.example:5000"]
  capabilities = ["pull"]
  dial_timeout = "1s500ms"
[host."http://near.example:5000".header]
  x-key = "1"
  x-more = ["2", "3"]

[host."far.example/v2/cache/"]
  capabilities = ["Pull", "resolve"]
  override_path = true
  skip_verify = true
  client = [["a.cert", "/abs/a.key"], "b.pem", ["c.pem", ""]]
"""


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("docker.io", Endpoint("registry-1.docker.io")),
        ("ghcr.io", Endpoint("ghcr.io")),
        ("localhost", Endpoint("localhost", tls=Tls(skip_verify=True))),
        ("127.0.0.1:443", Endpoint("127.0.0.1:443", tls=Tls(skip_verify=True))),
        ("127.0.0.1:80", Endpoint("127.0.0.1:80", "http")),
        ("[::1]:5000", Endpoint("[::1]:5000", tls=Tls(skip_verify=True), falls_back=True)),
        ("10.0.0.1:5000", Endpoint("10.0.0.1:5000")),
    ],
)
def test_without_configuration(registry: str, expected: Endpoint) -> None:
    assert endpoints(registry) == [expected]


def test_a_scheme_for_all() -> None:
    assert endpoints("h.io", scheme="http") == [Endpoint("h.io", "http")]
    assert endpoints("docker.io", scheme="http")[0].scheme == "https"
    (local,) = endpoints("localhost:5000", scheme="https")
    assert (local.scheme, local.falls_back) == ("https", False)


def test_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "docker.io"
    folder.mkdir()
    (folder / "hosts.toml").write_text(_MIRRORS)
    near, far, upstream = endpoints("docker.io", [str(tmp_path)])
    assert (near.scheme, near.host, near.path) == ("http", "near.example:5000", "/v2")
    assert near.capabilities == Capability.PULL
    assert near.dial_seconds == 1.5
    assert near.header == {"x-key": ("1",), "x-more": ("2", "3")}
    assert not near.falls_back
    assert (far.scheme, far.host, far.path) == ("https", "far.example", "/v2/cache")
    assert far.capabilities == Capability.PULL | Capability.RESOLVE
    assert far.tls == Tls(
        client=(
            (f"{folder}/a.cert", "/abs/a.key"),
            (f"{folder}/b.pem", f"{folder}/b.pem"),
            (f"{folder}/c.pem", f"{folder}/c.pem"),
        ),
        skip_verify=True,
    )
    assert (upstream.host, upstream.path) == ("upstream.example", "/sub/v2")
    assert upstream.tls == Tls(ca=(f"{folder}/upstream.crt",))
    assert upstream.can(Capability.ALL)
    assert near.stands_for("docker.io")


def test_without_a_server_the_registry_is_last(tmp_path: Path) -> None:
    folder = tmp_path / "r.io_5000_"
    folder.mkdir()
    (folder / "hosts.toml").write_text('skip_verify = true\n[host."http://m"]\n')
    mirror, own = endpoints("r.io:5000", [str(tmp_path)])
    assert mirror == Endpoint("m", "http")
    assert own == Endpoint("r.io:5000", tls=Tls(skip_verify=True))


def test_certificates_of_docker(tmp_path: Path) -> None:
    folder = tmp_path / "_default"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key", "lone.cert", "notes.txt"):
        (folder / name).touch()
    (found,) = endpoints("any.io", [str(tmp_path / "absent"), str(tmp_path)])
    assert found.tls == Tls(
        (f"{folder}/ca.crt",),
        (
            (f"{folder}/lone.cert", f"{folder}/lone.cert"),
            (f"{folder}/me.cert", f"{folder}/me.key"),
        ),
    )


def test_the_first_folder_by_name_decides(tmp_path: Path) -> None:
    for name in ("_default", "h:1", "h_1_"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "hosts.toml").write_text(f'server = "http://{name.strip("_:1")}.example"')
    assert endpoints("h:1", [str(tmp_path)])[0].host == "h.example"
    assert endpoints("x", [str(tmp_path)])[0].host == "default.example"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("server = ", "hosts.toml: Invalid value"),
        ("server = 1", "hosts.toml: server: must be a string"),
        ('server = "ftp://x"', "server: 'ftp://x' must be http"),
        ('server = "http://a:b"', "is no URL"),
        ('server = "http://u:p@h"', r"must be http\(s\)://HOST"),
        ('capabilties = ["pull"]', "capabilties: is unknown; known are ca, capabilities"),
        ('[host."m"]\ncapabilities = ["fly"]', r"host.\"m\".capabilities: 'fly' is not one of"),
        ('[host."m"]\nca = 1', r"host.\"m\".ca: must be a list of strings or a string"),
        ('[host."m"]\nclient = [["a", "b", "c"]]', "client: must be pairs"),
        ('[host."m"]\nskip_verify = "yes"', "skip_verify: must be true or false"),
        ('[host."m"]\ndial_timeout = "soon"', r"host.\"m\".dial_timeout: 'soon' is no duration"),
        ('[host."m".header]\nx = "a\\r\\nb: c"', "header.x: must be one line"),
        ('[host.""]', "must be the URL of a server"),
        ('host = ["a"]', "host: must be tables"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, rule: str) -> None:
    folder = tmp_path / "r.io"
    folder.mkdir()
    (folder / "hosts.toml").write_text(text)
    with pytest.raises(InvalidArgument, match=rule) as caught:
        endpoints("r.io", [str(tmp_path)])
    assert str(caught.value).startswith(str(folder))
