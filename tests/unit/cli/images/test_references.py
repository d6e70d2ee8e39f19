"""Image names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.cli.errors import CliError
from supervisord.cli.images import references

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1"),
        ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("host:5000/app:x", "host:5000/app:x"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
    ],
)
def test_docker_names_in_full(name: str, full: str) -> None:
    assert references.normalize(name) == full


@pytest.mark.parametrize("name", ["", ":", "UPPER", "a//b", "a:b:c", "a@sha256:x", "-a", "a/../b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(CliError, match="is not an image name"):
        references.normalize(name)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    try:
        full = references.normalize(text)
    except CliError:
        return
    assert references.normalize(full) == full


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("docker.io/library/alpine:3", "alpine:3"),
        ("docker.io/user/app:1", "user/app:1"),
        ("quay.io/library/x:1", "quay.io/library/x:1"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert references.familiar(name) == short


def test_tags() -> None:
    assert references.tag_of("host:5000/app:v1") == "v1"
    assert references.tag_of("host:5000/app") == "host:5000/app"
    assert references.tag_of(f"a@{DIGEST}") == f"a@{DIGEST}"


@pytest.mark.parametrize(
    ("tag", "base", "only", "name"),
    [
        ("v1", "foo/bar", False, "foo/bar:v1"),
        ("v1", "foo/bar", True, "foo/bar:v1"),
        ("x/y:1", "foo/bar", False, "x/y:1"),
        ("x/y:1", "foo/bar", True, ""),
        ("foo/bar:1", "foo/bar", True, "foo/bar:1"),
        ("foo/barn:1", "foo/bar", True, ""),
        ("foo/bar", "foo/bar", True, "foo/bar"),
    ],
)
def test_names_from_an_archive(tag: str, base: str, only: bool, name: str) -> None:
    assert references.from_archive(tag, base, only_base=only) == name
