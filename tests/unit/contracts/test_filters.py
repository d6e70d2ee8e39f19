"""The filter language: what matches, and where a malformed one is faulty."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.contracts import filters
from supervisord.contracts.errors import InvalidArgument

THINGS = [
    {"name": "one", "labels": {"tier": "web", "a b": "x", "site.zone": "north"}},
    {"name": "two", "labels": {"tier": "db", 'q"\\': "y"}},
    {"name": "three", "labels": {}},
]


def _adapt(thing: dict) -> filters.Adaptor:  # type: ignore[type-arg]
    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "name":
            return thing["name"], True
        if path[0] == "labels":
            return filters.lookup(path[1:], thing["labels"])
        return "", False

    return field


@pytest.mark.parametrize(
    ("given_filters", "expected"),
    [
        ([], "one two three"),
        ([""], "one two three"),
        (["name==one"], "one"),
        (["name==one", "name==two"], "one two"),
        (["name==one,labels.tier==db"], ""),
        (["labels.tier"], "one two"),
        (["labels.tier!=web"], "two three"),
        (["labels.site.zone==north"], "one"),
        (['labels."site.zone"==north'], "one"),
        (['labels."a b"==x'], "one"),
        ([r'labels."q\"\\"==y'], "two"),
        (["name~=^t"], "two three"),
        (["name~=/^(one|two)$/"], "one two"),
        (["name~=|e$|"], "one three"),
        (['name=="one"'], "one"),
        ([r'name=="\x6fne"'], "one"),
        ([r'name=="\157\u006e\U00000065"'], "one"),
        (["name == one , labels.tier == web"], None),
        (["name == one, labels.tier == web"], "one"),
        (["labels.none~=^$"], "one two three"),
        (["labels.none=="], None),
        (['labels.none==""'], ""),
        (["unknown"], ""),
        (["unknown!=x"], "one two three"),
        (["name~=o.e"], "one"),
    ],
)
def test_match(given_filters: list[str], expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument):
            filters.parse(given_filters)
        return
    parsed = filters.parse(given_filters)
    assert [t["name"] for t in THINGS if parsed.match(_adapt(t))] == expected.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        ("labels.|foo|==x", "[labels. >|||< foo|==x]: invalid quote encountered"),
        ("name==|foo|", "[name== >|||< foo|]: invalid quote encountered"),
        ("image~=,id?=?x", "[image~= >|,|< id?=?x]: expected value or quoted"),
        ("labels.ns/key==v", "[labels.ns >|/|< key==v]: quoted literal not terminated"),
        ("labels.key==/v", "[labels.key== >|/|< v]: quoted literal not terminated"),
        ("labels.?", "[labels. >|?|< ]: expected field or quoted"),
        ("name", None),
        ("name=x", '[name >|=|< x]: unsupported operator "="'),
        ("name===x", '[name >|=|< ==x]: unsupported operator "==="'),
        ("name x", '[name  >|x|< ]: expected an operator ("=="|"!="|"~=")'),
        (r'name=="\q"', r'[name== >|"|< \q"]: illegal escape sequence'),
        (r'name=="\x6"', r'[name== >|"|< \x6"]: illegal numeric escape sequence'),
        ("na\0me", None),
        ("name~=(", "missing closing )"),
        ("name==a b", "unexpected input"),
    ],
)
def test_malformed(text: str, message: str | None) -> None:
    if text == "name":
        filters.parse([text])
        return
    with pytest.raises(InvalidArgument) as caught:
        filters.parse(["ok", text])
    assert "filters: parse error: [" in caught.value.message
    assert message is None or message in caught.value.message


def test_always() -> None:
    assert filters.parse([]).always
    assert filters.parse(["name", ""]).always
    assert not filters.parse(["name"]).always


def test_a_filter_has_a_size_limit() -> None:
    with pytest.raises(InvalidArgument, match="more than"):
        filters.parse(["a" * (filters.MAX_FILTER + 1)])


@given(st.text('abc.,=!~"/|\\x41 \n\0', max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = filters.parse([text])
    except InvalidArgument:
        return
    assert parsed.match(_adapt(THINGS[0])) in (True, False)
