"""The manual: docs/sctl.md names every command and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisord.cli.arguments import NOUNS, build
from tests.unit.cli.commands import choices, every

PAGE = (Path(__file__).resolve().parents[3] / "docs/sctl.md").read_text()


@pytest.mark.parametrize("words", [words for words, _ in every()], ids=" ".join)
def test_every_command_is_in_the_manual(words: tuple[str, ...]) -> None:
    assert f"`sctl {' '.join(words)}" in PAGE


def test_the_manual_names_no_other_command() -> None:
    known = {words for words, _ in every()} | {(entry.name,) for entry in NOUNS}
    nouns = choices(build())
    for text in re.findall(r"`sctl ([a-z-]+(?: [a-z-]+)?)", PAGE):
        words = tuple(text.split())
        assert words in known or (words[0] in nouns and words[:1] in known), text


def test_every_flag_in_the_manual_exists() -> None:
    flags = {"--help", "--version"}
    for parser in (build(), *(parser for _, parser in every())):
        flags |= {flag for action in parser._actions for flag in action.option_strings}
    for noun in choices(build()).values():
        flags |= {flag for action in noun.filled()._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - flags == set()
