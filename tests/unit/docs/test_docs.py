"""The reference pages say what the code does, and nothing in the code lacks its words."""

from __future__ import annotations

import os
import re

import pytest

from tests.unit.docs import reference


@pytest.mark.parametrize("page", sorted(reference.PAGES))
def test_the_page_is_current(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    assert (reference.FOLDER / page).read_text() == reference.PAGES[page](), "run ./dev docs"


def test_every_configuration_key_is_explained() -> None:
    previous, bare = "", []
    for line in reference.configuration().splitlines():
        if re.match(r"[\w\"-]+ = ", line) and not previous.startswith("# "):
            bare.append(line)
        previous = line
    assert bare == []


def test_every_metric_is_explained() -> None:
    assert [f.name for f in reference._families() if not f.documentation.strip()] == []
