"""Regular expressions from clients, searched in linear time.

The syntax is Go's (RE2): no backreferences, no lookaround, repetition counts up to 1000. Since a
filter only asks whether a text matches, groups and greediness have no effect. Python's own
``re`` backtracks, so that a client could hang the daemon with a few characters; here the pattern
becomes a nondeterministic automaton, walked one character at a time with all its states at once,
and the sets of states that came up are remembered. The time is bounded by the length of the text
times the size of the pattern, whatever the pattern is.

Used by contracts.filters alone. Unicode script names (``\\p{Greek}``) are not known, general
categories (``\\p{Lu}``) are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import InvalidArgument
from .expression_syntax import (
    Alternate,
    Assertion,
    Concat,
    Node,
    Repeat,
    Single,
    parse,
)

MAX_STATES = 2000
"""States of one automaton; counted repetitions are written out."""

_MAX_REMEMBERED = 4096

# What stands before or after a position, as far as assertions care.
_EDGE, _NEWLINE, _WORD, _OTHER = range(4)


@dataclass(slots=True)
class _State:
    """One state: it consumes a character, or checks an assertion, or just goes on."""

    accepts: Callable[[str], bool] | None = None
    assertion: str = ""
    to: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Set:
    """Some states at once, with what stands before them, and where each character leads (None:
    the text matches already)."""

    states: frozenset[int]
    before: int
    after: dict[str, _Set | None] = field(default_factory=dict)
    at_end: bool | None = None


class Automaton:
    """A compiled pattern. Not safe for use by several threads at once."""

    def __init__(self, node: Node) -> None:
        self._states: list[_State] = []
        self._asserts = False
        self._final = self._add(_State())
        self._start = self._build(node, self._final)
        self._forget()

    def search(self, text: str) -> bool:
        """Whether the pattern matches anywhere in the text."""
        current: _Set | None = self._initial
        for char in text:
            try:
                following = current.after[char]  # type: ignore[union-attr]
            except KeyError:
                following = self._follow(current, char)  # type: ignore[arg-type]
            if following is None:
                return True
            current = following
        assert current is not None  # noqa: S101 - for the type checker
        if current.at_end is None:
            current.at_end = self._closure(current, _EDGE)[1]
        return current.at_end

    # Construction ----------------------------------------------------------------------------

    def _add(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise InvalidArgument("the regular expression is too large")
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, node: Node, then: int) -> int:
        """Adds the states of ``node`` in front of ``then``; answers the first of them."""
        if isinstance(node, Single):
            return self._add(_State(accepts=node.accepts, to=[then]))
        if isinstance(node, Assertion):
            self._asserts = True
            return self._add(_State(assertion=node.kind, to=[then]))
        if isinstance(node, Concat):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if isinstance(node, Alternate):
            return self._add(_State(to=[self._build(part, then) for part in node.parts]))
        return self._build_repeat(node, then)

    def _build_repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            loop = self._add(_State(to=[then]))
            self._states[loop].to.append(self._build(node.part, loop))
            then = loop
        else:
            end = then
            for _ in range(node.most - node.least):
                then = self._add(_State(to=[self._build(node.part, then), end]))
        for _ in range(node.least):
            first = self._build(node.part, then)
            if first == then:
                break  # an empty part: more of it would only take time
            then = first
        return then

    # Walking -----------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._known: dict[tuple[frozenset[int], int], _Set] = {}
        self._steps = 0
        self._initial = self._intern(frozenset([self._start]), _EDGE)

    def _intern(self, states: frozenset[int], before: int) -> _Set:
        key = (states, before if self._asserts else _OTHER)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Set(states, before)
        return known

    def _follow(self, current: _Set, char: str) -> _Set | None:
        if self._steps >= _MAX_REMEMBERED:
            self._forget()
        self._steps += 1
        kind = _kind(char)
        states, matched = self._closure(current, kind)
        following: _Set | None = None
        if not matched:
            reached = {self._start}
            for number in states:
                state = self._states[number]
                if state.accepts is not None and state.accepts(char):
                    reached.add(state.to[0])
            following = self._intern(frozenset(reached), kind)
        current.after[char] = following
        return following

    def _closure(self, current: _Set, after: int) -> tuple[set[int], bool]:
        """All states that are reached without a character, and whether the final one is."""
        seen = set(current.states)
        open_ends = list(seen)
        while open_ends:
            number = open_ends.pop()
            state = self._states[number]
            if state.accepts is not None:
                continue
            if state.assertion and not _holds(state.assertion, current.before, after):
                continue
            for target in state.to:
                if target not in seen:
                    seen.add(target)
                    open_ends.append(target)
        return seen, self._final in seen


def compile(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether the pattern matches anywhere in a text.

    Raises InvalidArgument for malformed, unknown or too large expressions."""
    return Automaton(parse(pattern)).search


def _kind(char: str) -> int:
    if char == "\n":
        return _NEWLINE
    return _WORD if char.isascii() and (char.isalnum() or char == "_") else _OTHER


def _holds(assertion: str, before: int, after: int) -> bool:
    if assertion == "text begin":
        return before == _EDGE
    if assertion == "text end":
        return after == _EDGE
    if assertion == "line begin":
        return before in (_EDGE, _NEWLINE)
    if assertion == "line end":
        return after in (_EDGE, _NEWLINE)
    boundary = (before == _WORD) != (after == _WORD)
    return boundary == (assertion == "word boundary")
