"""What a person sees of a transfer, on wide and on narrow terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from supervisord.cli.images import bars
from supervisord.cli.images.bars import Bars

_MIB = 1 << 20


def _shown(width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Bars, Console]:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    monkeypatch.setattr(bars, "Console", lambda **_: console)
    return Bars(), console


def _lines(shown: Bars, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(shown._progress.get_renderable())
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (100, ["layer b", "downloading", "2.0 MiB", "8.0 MiB"]),
        (70, ["layer b", "downloading", "2.0 MiB", "8.0 MiB"]),
        (40, ["layer b", "downloading", "25%"]),
    ],
)
def test_layers_and_their_sum(
    width: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, console = _shown(width, monkeypatch)
    shown.update("layer a", "unpacked", 0, 4 * _MIB)
    shown.update("layer b", "downloading", 2 * _MIB, 8 * _MIB)
    shown.update("layer c", "here", 0, 100 * _MIB)
    lines = _lines(shown, console)
    assert [line.split(" ")[0] for line in lines] == ["layer", "layer", "layer", "total"]
    assert all(word in lines[1] for word in words)
    assert all(len(line) <= width for line in lines)
    # What is here is no part of what comes.
    assert ("12.0 MiB" if width > 50 else "50%") in lines[3]


def test_nothing_to_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, console = _shown(100, monkeypatch)
    for name in ("a", "b"):
        shown.update(name, "waiting", 0, _MIB)
    for name in ("a", "b"):
        shown.update(name, "there", 0, _MIB)
    assert [line[0] for line in _lines(shown, console)] == ["a", "b"]
