"""Descriptors and platforms, from JSON that nobody vouches for."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.cli.errors import CliError
from supervisord.cli.images import media
from supervisord.cli.images.manifests import chain_ids, diff_ids, parse_manifest
from supervisord.cli.images.media import Descriptor, Platform

DIGEST = "sha256:" + "ab" * 32
GOOD: dict[str, Any] = {
    "mediaType": media.MANIFEST,
    "digest": DIGEST,
    "size": 7,
    "annotations": {"a": "b"},
    "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def test_a_descriptor_survives_json() -> None:
    found = media.descriptor_of(GOOD, "here")
    assert found == Descriptor(media.MANIFEST, DIGEST, 7, {"a": "b"}, Platform("linux", "arm64"))
    assert media.descriptor_of(found.to_json(), "here") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "sha256:../../etc"}, "is not a digest"),
        ({"digest": "sha256:" + "A" * 64}, "is not a digest"),
        ({"digest": DIGEST + "\n"}, "is not a digest"),
        ({"digest": None}, "is not a digest"),
        ({"size": -1}, "is not a number of bytes"),
        ({"size": True}, "is not a number of bytes"),
        ({"size": "7"}, "is not a number of bytes"),
        ({"mediaType": 1}, "mediaType is not text"),
        ({"annotations": ["a"]}, "annotations"),
        ({"annotations": {"a": 1}}, "annotations"),
        ({"platform": "linux"}, "platform is not an object"),
        ({"platform": {"os": 1}}, "platform is not text"),
    ],
)
def test_a_bad_descriptor_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CliError, match=message) as raised:
        media.descriptor_of(GOOD | change, "index.json: manifests[0]")
    assert str(raised.value).startswith("index.json: manifests[0]")


@given(JSON)
def test_any_json_is_a_descriptor_or_an_error(value: object) -> None:
    for attempt in (value, {**GOOD, "annotations": value}, {**GOOD, "platform": value}):
        with contextlib.suppress(CliError):
            media.descriptor_of(attempt, "x")


@given(st.dictionaries(st.sampled_from(["config", "layers", "manifests", "rootfs"]), JSON))
def test_any_json_is_a_manifest_or_an_error(value: dict[str, Any]) -> None:
    for attempt in (
        lambda: parse_manifest(value, Descriptor(media.MANIFEST, DIGEST, 1)),
        lambda: diff_ids(value, DIGEST),
    ):
        with contextlib.suppress(CliError):
            attempt()


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("linux/x86_64", Platform("linux", "amd64")),
    ],
)
def test_platforms(text: str, platform: Platform) -> None:
    assert media.parse_platform(text) == platform
    assert media.parse_platform(str(platform)) == platform


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(CliError, match="is not of the form"):
        media.parse_platform(text)


def test_a_variant_that_goes_without_saying_matches() -> None:
    assert Platform("linux", "arm64", "v8").matches(Platform("linux", "arm64"))
    assert not Platform("linux", "arm", "v6").matches(Platform("linux", "arm"))
    assert not Platform("linux", "amd64").matches(Platform("linux", "arm64"))


def test_chain_ids_are_those_of_the_specification() -> None:
    """Computed by containerd for the same two layers."""
    ids = ["sha256:" + "1" * 64, "sha256:" + "2" * 64]
    assert chain_ids(ids)[0] == ids[0]
    import hashlib

    expected = hashlib.sha256(f"{ids[0]} {ids[1]}".encode()).hexdigest()
    assert chain_ids(ids)[1] == f"sha256:{expected}"
    assert chain_ids([]) == []
