"""Resources of an update: what is refused before any runtime sees it."""

from __future__ import annotations

import pytest

from supervisord.contracts.errors import InvalidArgument
from supervisord.runtime.resources import check_resources


@pytest.mark.parametrize("value", [b"{}", b'{"memory": {"limit": 1048576}, "unified": {"a": "b"}}'])
def test_resources_are_taken(value: bytes) -> None:
    check_resources(value)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (b"", "resources: must be given"),
        (b"{", "resources: must be the JSON"),
        (b'{"unified": ' + b"[" * 100_000, "resources: must not be nested so deeply"),
        (b'{"memory": {"limit": "much"}}', r"resources: must be the JSON.*memory\.limit"),
    ],
)
def test_malformed_resources_name_the_rule(value: bytes, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        check_resources(value)
