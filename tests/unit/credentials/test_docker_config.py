"""docker's ``config.json``, with real helper programs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord.credentials.docker_config import DockerConfig
from supervisord.credentials.secret import CredentialsError, Secret

Config = Callable[[object], DockerConfig]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    def make(value: object) -> DockerConfig:
        path = tmp_path / "config.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return DockerConfig(path)

    return make


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes ``docker-credential-NAME``, a shell script with the server's name in ``$server``."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(name: str, script: str) -> None:
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f'#!/bin/sh\n[ "$1" = get ] || exit 9\nread -r server\n{script}\n')
        path.chmod(0o755)

    return make


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


async def test_what_is_written(config: Config) -> None:
    known = config(
        {
            "auths": {
                "https://index.docker.io/v1/": _auth("hub:secret"),
                "r.io:5000": _auth("me:a:b"),
                "https://url.io/v2/": _auth("u:p"),
                "plain.io": {"username": "n", "password": "w"},
                "token.io": {"identitytoken": "refresh", **_auth("x:y")},
                "bearer.io": {"registrytoken": "t"},
                "empty.io": {},
            }
        }
    )
    for host in ("docker.io", "registry-1.docker.io"):
        assert await known.secret(host) == Secret("hub", "secret")
    assert await known.secret("r.io:5000") == Secret("me", "a:b")
    assert await known.secret("url.io") == Secret("u", "p")
    assert await known.secret("plain.io") == Secret("n", "w")
    assert await known.secret("token.io") == Secret("", "refresh")
    assert await known.secret("bearer.io") == Secret(header="Bearer t")
    for host in ("empty.io", "r.io", "other.io"):
        assert not await known.secret(host)
    assert "secret" not in repr(await known.secret("docker.io"))


async def test_no_file_knows_nothing(tmp_path: Path) -> None:
    assert not await DockerConfig(tmp_path / "absent").secret("r.io")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("{", "is no JSON"),
        ("[]", "must be a JSON object"),
        ({"auths": {"r.io": {"auth": "!"}}}, "auths.r.io.auth: must be base64"),
        ({"auths": {"r.io": _auth("nocolon")}}, "auths.r.io.auth: must be base64"),
    ],
)
async def test_a_file_that_is_wrong(config: Config, value: object, rule: str) -> None:
    with pytest.raises(CredentialsError, match=rule):
        await config(value).secret("r.io")


async def test_helpers(config: Config, helper: Callable[[str, str], None]) -> None:
    helper("one", 'echo "{\\"Username\\": \\"u-$server\\", \\"Secret\\": \\"s\\"}"')
    helper("all", """echo '{"Username": "<token>", "Secret": "t"}'""")
    helper("none", "echo credentials not found in native keychain; exit 1")
    known = config(
        {
            "credHelpers": {"r.io": "one", "gone.io": "none"},
            "credsStore": "all",
            "auths": {"gone.io": _auth("a:b")},
        }
    )
    assert await known.secret("r.io") == Secret("u-r.io", "s")
    assert await known.secret("x.io") == Secret("", "t")
    assert await known.secret("gone.io") == Secret("", "t")
    only = config({"credsStore": "none", "auths": {"gone.io": _auth("a:b")}})
    assert await only.secret("gone.io") == Secret("a", "b")


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ("echo locked; exit 3", "exit status 3: locked"),
        ("echo nonsense", "answered no JSON"),
        ("echo '{}'", "answered no JSON"),
    ],
)
async def test_a_helper_that_fails(
    config: Config, helper: Callable[[str, str], None], script: str, rule: str
) -> None:
    helper("bad", script)
    with pytest.raises(CredentialsError, match=f"docker-credential-bad: {rule}"):
        await config({"credsStore": "bad"}).secret("r.io")


async def test_a_helper_that_is_not_there(config: Config) -> None:
    with pytest.raises(CredentialsError, match="docker-credential-absent: No such file"):
        await config({"credsStore": "absent"}).secret("r.io")
    with pytest.raises(CredentialsError, match="must be a word"):
        await config({"credsStore": "../sh"}).secret("r.io")
