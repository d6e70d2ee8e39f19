"""``WWW-Authenticate``, as registries write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.images.registry.challenge import Challenge, parse


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a.io/token",service="a.io",scope="repository:x/y:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://a.io/token",
                        "service": "a.io",
                        "scope": "repository:x/y:pull,push",
                    },
                )
            ],
        ),
        ('Basic realm="a \\"b\\""', [Challenge("basic", {"realm": 'a "b"'})]),
        ("BASIC REALM=x", [Challenge("basic", {"realm": "x"})]),
        ("Negotiate", [Challenge("negotiate")]),
        (
            'Negotiate, Basic realm="r", Bearer realm="t" , error=x',
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "r"}),
                Challenge("bearer", {"realm": "t", "error": "x"}),
            ],
        ),
        ('NTLM dGVzdA==, Basic realm="r"', [Challenge("ntlm"), Challenge("basic", {"realm": "r"})]),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ("", []),
        (",,", []),
        ("=", []),
    ],
)
def test_parse(header: str, expected: list[Challenge]) -> None:
    assert parse([header]) == expected


@given(st.text(alphabet='aB= ,"\\;:/', max_size=40))
def test_nothing_hangs_or_breaks(header: str) -> None:
    for challenge in parse([header]):
        assert challenge.scheme == challenge.scheme.lower()
