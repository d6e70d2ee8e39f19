"""References: what is one, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.contracts.errors import InvalidArgument
from supervisord.images.reference import Reference, parse

_DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker.io/library/alpine:3", Reference("docker.io", "library/alpine", "3")),
        ("localhost:5000/a", Reference("localhost:5000", "a")),
        ("[::1]:5000/a/b__c:x.Y-z_1", Reference("[::1]:5000", "a/b__c", "x.Y-z_1")),
        (f"h.io/a@{_DIGEST}", Reference("h.io", "a", "", _DIGEST)),
        (f"h.io/a:t@{_DIGEST}", Reference("h.io", "a", "t", _DIGEST)),
        ("h/a---b/c.d", Reference("h", "a---b/c.d")),
    ],
)
def test_parts(text: str, expected: Reference) -> None:
    found = parse(text)
    assert found == expected
    assert str(found) == text
    assert found.target == (expected.digest or expected.tag)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must begin with a host"),
        ("alpine", "must begin with a host"),
        ("/a", "must begin with a host"),
        ("https://h/a", "must begin with a host"),
        ("user@h.io/a", "must begin with a host"),
        ("..:1/a", "must begin with a host"),
        ("h.io/", "must be lower case"),
        ("h.io/A", "must be lower case"),
        ("h.io/../a", "must be lower case"),
        ("h.io/a//b", "must be lower case"),
        ("h.io/a?b", "must be lower case"),
        ("h.io/a b", "must be lower case"),
        ("h.io/" + "a" * 256, "at most 255"),
        ("h.io/a:", "tag ''"),
        ("h.io/a:-x", "tag '-x'"),
        ("h.io/a:" + "x" * 129, "1 to 128"),
        ("h.io/a:x/y", "tag 'x/y'"),
        ("h.io/a@", "digest ''"),
        ("h.io/a@sha256:abc", "digest 'sha256:abc'"),
        (f"h.io/a@{_DIGEST.upper()}", "digest"),
        ("h.io/a\n", "must be lower case"),
    ],
)
def test_what_is_none(text: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        parse(text)


@given(st.text(max_size=60))
def test_whatever_is_accepted_comes_back(text: str) -> None:
    try:
        found = parse(text)
    except InvalidArgument:
        return
    assert str(found) == text
    assert not set(found.host) & set("/@?# \n") and ".." not in found.repository.split("/")
