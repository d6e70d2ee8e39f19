"""Platforms: words, and what runs where."""

from __future__ import annotations

import platform as machine

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.images.oci import media, platforms
from supervisord.images.oci.documents import Descriptor, PlatformField
from supervisord.images.oci.platforms import Platform, parse, rank
from supervisord.images.selection import Selection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AArch64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("macos/arm64", "darwin/arm64"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert str(parse(text)) == expected


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="must be OS/ARCHITECTURE"):
        parse(text)


def test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda: "armv6l")
    assert platforms.here() == Platform("linux", "arm", "v6")


@pytest.mark.parametrize(
    ("wanted", "offered", "order"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"], ["linux/amd64", "linux/386"]),
        ("linux/amd64", ["linux/amd64/v2", "linux/arm64", "windows/amd64"], []),
        (
            "linux/amd64/v3",
            ["linux/amd64", "linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v4"],
            ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"],
        ),
        (
            "linux/arm64",
            ["linux/arm/v6", "linux/arm/v7", "linux/arm64"],
            ["linux/arm64", "linux/arm", "linux/arm/v6"],
        ),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], ["linux/arm/v5"]),
    ],
)
def test_what_runs_where(wanted: str, offered: list[str], order: list[str]) -> None:
    ranks = {str(parse(one)): rank(parse(wanted), parse(one)) for one in offered}
    found = sorted((how, one) for one, how in ranks.items() if how is not None)
    assert [one for _, one in found] == order


def _for(platform: str, digit: str) -> Descriptor:
    found = parse(platform)
    told = PlatformField(found.os, found.architecture, found.variant)
    return Descriptor(media.MANIFEST, "sha256:" + digit * 64, 1, platform=told)


def test_selection() -> None:
    amd, arm, v3 = _for("amd64", "1"), _for("arm64", "2"), _for("linux/amd64/v3", "3")
    silent = Descriptor(media.MANIFEST, "sha256:" + "4" * 64, 1)
    everything = [amd, arm, v3, silent]
    assert list(Selection().of(everything)) == everything
    assert list(Selection(limit=2).of(everything)) == [amd, arm]
    assert list(Selection([parse("amd64")]).of(everything)) == [amd]
    assert list(Selection([parse("linux/amd64/v4")], 1).of(everything)) == [v3]
    assert list(Selection([parse("arm64"), parse("amd64")]).of(everything)) == [arm, amd]
    assert list(Selection([parse("s390x")]).of(everything)) == [silent]
    assert list(Selection([parse("s390x")]).of([amd])) == []
