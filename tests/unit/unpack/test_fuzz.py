"""What fuzzing starts from and what it has found, without the fuzzer; see tests/fuzz."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fuzz
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS

CORPUS = Path(fuzz.__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_what_was_found(target: str) -> None:
    found = [path.read_bytes() for path in (CORPUS / target).glob("*")]
    for data in (b"", *seeds.of(target), *found):
        TARGETS[target](data)


def test_the_corpus_is_of_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_seeds(target: str, data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(list(seeds.of(target)))))
    places = st.tuples(st.integers(0, max(len(changed) - 1, 0)), st.binary(max_size=12))
    for at, piece in data.draw(st.lists(places, max_size=6)):
        changed[at : at + len(piece)] = piece
    TARGETS[target](bytes(changed[: data.draw(st.integers(0, len(changed)))]))
    TARGETS[target](bytes(changed))
