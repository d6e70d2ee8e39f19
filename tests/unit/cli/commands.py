"""Every noun and verb of ``sctl`` as its parsers declare them, for tests that look at all."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from supervisord.cli.arguments import NOUNS, Parser, build


def choices(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """The sub-parsers of a parser by name, aliases included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def every() -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Each command by its words (``("images", "ls")``), under its main name only."""
    top = build()
    for entry in NOUNS:
        noun = choices(top)[entry.name].filled()
        verbs = choices(noun)
        if not verbs:
            yield (entry.name,), noun
        for parser in {id(verb): verb for verb in verbs.values()}.values():
            name = next(name for name, verb in verbs.items() if verb is parser)
            yield (entry.name, name), parser
