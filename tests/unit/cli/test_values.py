"""What people type: durations, sizes, pairs, signals."""

from __future__ import annotations

import contextlib
import signal
from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.cli import values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("10", 10),
        ("10s", 10),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("24h", 86400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "10 s", "1d", "ten", "1m-30s", "1e3"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a duration"):
        values.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64M", 64 << 20),
        ("1g", 1 << 30),
        ("1GiB", 1 << 30),
        ("2kb", 2048),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert values.size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "M", "1.5M", "1X", "1MM"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a size"):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("64", 64)],
)
def test_signals(text: str, number: int) -> None:
    assert values.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "SIGNOPE", "KILL+1", "RTMIN+x"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not"):
        values.signal_number(text)


def test_pairs() -> None:
    assert values.pair("a=b=c") == ("a", "b=c")
    assert values.pair("a") == ("a", "true")
    assert values.label_change("a") == ("a", "")
    assert values.label_change("a=") == ("a", "")
    for parse in (values.pair, values.label_change):
        with pytest.raises(ArgumentTypeError, match="key=value"):
            parse("=b")


@given(st.text(max_size=20))
def test_nothing_else_is_raised(text: str) -> None:
    for parse in (values.duration, values.size, values.signal_number, values.pair):
        with contextlib.suppress(ArgumentTypeError):
            parse(text)
