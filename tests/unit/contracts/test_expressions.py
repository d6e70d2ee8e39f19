"""Go's regular expressions, checked against Python's ``re`` where both mean the same."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.expressions import compile as compile_expression

MATCHES = [
    ("", "", True),
    ("", "x", True),
    ("abc", "xxabcxx", True),
    ("abc", "ab", False),
    ("^abc$", "abc", True),
    ("^abc$", "abc\n", False),
    ("(?m)^b$", "a\nb\nc", True),
    ("a.c", "a\nc", False),
    ("(?s)a.c", "a\nc", True),
    ("(?i)HeLLo", "say hello", True),
    ("(?i:a)b", "AB", False),
    ("(?i:a)b", "Ab", True),
    ("(?i)a(?-i)b", "AB", False),
    ("(?i-s)a.", "A\n", False),
    ("[a-c]+x", "zzabcx", True),
    ("[^a-c]", "abc", False),
    ("[]a]", "]", True),
    ("[a-]", "-", True),
    ("[[:digit:]x]{2}", "5x", True),
    ("[[:^digit:]]", "55", False),
    (r"\d{2,3}", "a1b23", True),
    (r"^\d{2,3}$", "1234", False),
    (r"\bfoo\b", "a foo b", True),
    (r"\bfoo\b", "afoo", False),
    (r"\Bfoo", "afoo", True),
    (r"\Aab\z", "ab", True),
    (r"\Qa.b\E+", "a.bbb", True),
    (r"\Qa.b\E", "axb", False),
    (r"\x41\x{1F600}\101", "A\U0001f600A", True),
    (r"\p{Lu}\P{Lu}", "Äa", True),
    (r"\pN", "x", False),
    ("(?P<name>a)|(?<other>b)", "b", True),
    ("a{,2}", "a{,2}", True),
    ("a{2", "a{2", True),
    ("a*?b+?", "b", True),
    ("(a|b|)c", "c", True),
    ("(){1000}x", "x", True),
    ("", "\U0001f600", True),
    ("^$", "", True),
    ("^$", "x", False),
    ("x*", "", True),
    (r"(?:\b)*a", "a", True),
]


@pytest.mark.parametrize(("pattern", "text", "expected"), MATCHES)
def test_matches(pattern: str, text: str, expected: bool) -> None:
    assert compile_expression(pattern)(text) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "a**",
        "*a",
        "a|*",
        "(a",
        "a)",
        "[a",
        "[b-a]",
        "a{1001}",
        "a{2,1}",
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?i",
        "(?-)",
        "[[:nope:]]",
        r"\p{Nope}",
        r"\q",
        "\\",
        r"\xZZ",
        r"\x{110000}",
        r"\8",
        "(?P<>a)",
        "(" * 200 + ")" * 200,
        "((a{100}){100}){100}",
        "a" * 5000,
    ],
)
def test_refuses(pattern: str) -> None:
    with pytest.raises(InvalidArgument):
        compile_expression(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(.*a){20}$", "(()(){1000}){1000}b$", "(?:a?){100}a{100}$"]
)
def test_hostile_patterns_take_linear_time(pattern: str) -> None:
    search = compile_expression(pattern)
    started = time.perf_counter()
    search("a" * 4000 + "!")
    assert time.perf_counter() - started < 3.0


_ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\d", r"\b", "^", "(a|b)", "(?:ab)"]
)
_REPEATS = st.sampled_from(["", "*", "+", "?", "{2}", "{1,2}", "{0,1}"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(_ATOMS, _REPEATS, st.sampled_from(["", "|"])), max_size=6),
    st.text("ab1 \n", max_size=12),
)
def test_agrees_with_re(parts: list[tuple[str, str, str]], text: str) -> None:
    pattern = ""
    for atom, repeat, bar in parts:
        pattern += atom + ("" if atom in ("^", r"\b") else repeat) + bar
    expected = re.search(pattern, text, re.ASCII) is not None
    assert compile_expression(pattern)(text) is expected, (pattern, text)
