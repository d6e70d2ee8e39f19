"""The bench judges goals in the right direction and compares medians."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from bench import layers, paired
from bench.figures import Figure, Results, quantile


@pytest.mark.parametrize(
    ("more_is_better", "ratio", "verdict"),
    [
        (False, 0.7, "reached"),
        (False, 0.71, "missed"),
        (True, 0.7, "reached"),
        (True, 0.69, "missed"),
    ],
)
def test_verdicts(more_is_better: bool, ratio: float, verdict: str) -> None:
    figure = Figure("x", "ms", more_is_better, goal=0.7)
    assert figure.verdict(ratio) == verdict


def test_without_a_goal_there_is_no_verdict() -> None:
    assert Figure("x", "ms").verdict(9.0) == ""


def test_the_table_shows_medians_ratio_and_goal() -> None:
    figure, results = Figure("whole", "ms", goal=0.7), Results()
    for value in (10.0, 11.0, 99.0):
        results.add("a", figure, value)
    for value in (1.0, 8.8, 9.0):
        results.add("b", figure, value)
    row = results.table("a", "b").splitlines()[-1].split()
    assert row == ["whole,", "ms", "11.00", "8.80", "0.80", "<=", "0.70", "missed"]
    assert results.missed("a", "b") == ["whole"]
    assert results.as_json() == {"whole, ms": {"a": [10.0, 11.0, 99.0], "b": [1.0, 8.8, 9.0]}}


def test_a_figure_of_one_daemon_alone_has_no_ratio() -> None:
    figure, results = Figure("whole", "ms", goal=0.7), Results()
    results.add("a", figure, 10.0)
    assert results.table("a", "b").splitlines()[-1].split() == ["whole,", "ms", "10.00", "-"]
    assert results.missed("a", "b") == []


def test_quantiles() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (51.0, 100.0)


def test_the_layer_is_the_same_every_time() -> None:
    layer = layers.tree(1, 150)
    assert layer == layers.tree(1, 150)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
        names = tar.getnames()
    assert len(names) == 152
    assert "d1/f149" in names


def test_differences_are_those_within_a_round() -> None:
    ours = [[float(number)] * 7 for number in (10, 20, 90)]
    theirs = [[number + 5.0 + index] * 7 for index, (number, *_) in enumerate(ours)]
    (_, _, line, *others) = paired.table({"ours": ours, "theirs": theirs}).splitlines()
    assert line.split() == ["create", "20.00", "26.00", "+6.00", "(", "+5.0", "+7.0)"]
    assert others[-1].startswith("processor time")
