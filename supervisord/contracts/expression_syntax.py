"""Go's regular expression syntax (RE2), parsed into a tree for contracts.expressions.

Flags ``i``, ``m``, ``s`` and ``U``; groups of all three forms, whose names are read and dropped;
bracket, Perl, POSIX and general category classes; ``\\Q...\\E``. What Go refuses (``a**``,
``{1001}``, ``(?=``, backreferences) is refused here too, with the same names for the faults.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import InvalidArgument

MAX_PATTERN = 4096
MAX_REPEAT = 1000
MAX_DEPTH = 100

Accepts = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Single:
    """Any one character that ``accepts`` says yes to."""

    accepts: Accepts


@dataclass(frozen=True, slots=True)
class Assertion:
    """``text begin``, ``text end``, ``line begin``, ``line end``, ``word boundary`` or
    ``no word boundary``."""

    kind: str


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts one after another; none of them is the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternate:
    """Any of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``part`` at least and at most (None: any number of) times."""

    part: Node
    least: int
    most: int | None


Node = Single | Assertion | Concat | Alternate | Repeat


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False
    lines: bool = False
    dot_newline: bool = False


_PERL: dict[str, Accepts] = {
    "d": lambda c: "0" <= c <= "9",
    "w": lambda c: c.isascii() and (c.isalnum() or c == "_"),
    "s": lambda c: c in "\t\n\f\r ",
}
_POSIX: dict[str, Accepts] = {
    "alnum": lambda c: c.isascii() and c.isalnum(),
    "alpha": lambda c: c.isascii() and c.isalpha(),
    "ascii": str.isascii,
    "blank": lambda c: c in "\t ",
    "cntrl": lambda c: c < " " or c == "\x7f",
    "digit": lambda c: "0" <= c <= "9",
    "graph": lambda c: "!" <= c <= "~",
    "lower": lambda c: "a" <= c <= "z",
    "print": lambda c: " " <= c <= "~",
    "punct": lambda c: "!" <= c <= "~" and not c.isalnum(),
    "space": lambda c: c in "\t\n\v\f\r ",
    "upper": lambda c: "A" <= c <= "Z",
    "word": lambda c: c.isascii() and (c.isalnum() or c == "_"),
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}
_CONTROL = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_ASSERTIONS = {
    "A": "text begin",
    "z": "text end",
    "b": "word boundary",
    "B": "no word boundary",
}
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_CATEGORY = re.compile(r"Any|L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfos]?")
_FLAGS = re.compile(r"\?(?P<on>[imsU]*)(?:-(?P<off>[imsU]+))?(?P<end>[:)])")


def parse(pattern: str) -> Node:
    """Raises InvalidArgument that quotes the faulty part of the pattern."""
    if len(pattern) > MAX_PATTERN:
        raise InvalidArgument(f"the regular expression has more than {MAX_PATTERN} characters")
    return _Parser(pattern).whole()


def _fault(name: str, part: str) -> InvalidArgument:
    return InvalidArgument(f"regular expression: {name}: `{part[:64]}`")


def _negated(accepts: Accepts) -> Accepts:
    return lambda c: not accepts(c)


def _either(parts: list[Accepts]) -> Accepts:
    return lambda c: any(accepts(c) for accepts in parts)


def _between(low: str, high: str) -> Accepts:
    return lambda c: low <= c <= high


def _folded(accepts: Accepts) -> Accepts:
    def either_case(c: str) -> bool:
        return any(accepts(v) for v in {c, c.lower(), c.upper(), c.upper().lower()} if len(v) == 1)

    return either_case


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._alternatives(_Flags())
        if self._at < len(self._text):
            raise _fault("unexpected )", self._text)
        return node

    def _peek(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _alternatives(self, flags: _Flags) -> Node:
        branches: list[Node] = []
        parts: list[Node] = []
        while (char := self._peek()) not in ("", ")"):
            if char == "|":
                self._at += 1
                branches.append(Concat(tuple(parts)))
                parts = []
            elif char in "*+?" or (char == "{" and self._counts() is not None):
                raise _fault("missing argument to repetition operator", char)
            elif self._peek(2) == "\\Q":
                parts += self._literal_run(flags)
            elif (changed := self._flag_change(flags)) is not None:
                flags = changed
            else:
                parts.append(self._repeated(self._atom(flags)))
        branches.append(Concat(tuple(parts)))
        return branches[0] if len(branches) == 1 else Alternate(tuple(branches))

    # Repetition --------------------------------------------------------------------------------

    def _repeated(self, node: Node) -> Node:
        before = self._at
        times = self._times()
        if times is None:
            return node
        if self._peek() == "?":
            self._at += 1
        again = self._at
        if self._times() is not None:
            raise _fault("invalid nested repetition operator", self._text[before : self._at])
        self._at = again
        least, most = times
        if most is not None and least > most:
            raise _fault("invalid repeat count", self._text[before:again])
        if isinstance(node, Assertion):
            # It takes no characters, so that one time is as good as many.
            return node if least else Repeat(node, 0, 1)
        return Repeat(node, least, most)

    def _times(self) -> tuple[int, int | None] | None:
        """Reads a repetition operator if one stands here."""
        char = self._peek()
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if char in simple:
            self._at += 1
            return simple[char]
        counts = self._counts()
        if counts is None:
            return None
        least, most, length = counts
        if max(least, most or 0) > MAX_REPEAT:
            raise _fault("invalid repeat count", self._peek(length))
        self._at += length
        return least, most

    def _counts(self) -> tuple[int, int | None, int] | None:
        """``{n}``, ``{n,}`` or ``{n,m}`` with its length; anything else is a plain brace."""
        if self._peek() != "{":
            return None
        close = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : close].partition(",")
        if close < 0 or not _is_count(low) or (high and not _is_count(high)):
            return None
        most = int(low) if not comma else int(high) if high else None
        return int(low), most, close + 1 - self._at

    # Atoms -------------------------------------------------------------------------------------

    def _atom(self, flags: _Flags) -> Node:
        char = self._next()
        if char == "(":
            return self._group(flags)
        if char == "[":
            accepts = self._bracket()
            return Single(_folded(accepts) if flags.fold else accepts)
        if char == ".":
            return Single(lambda c: flags.dot_newline or c != "\n")
        if char == "^":
            return Assertion("line begin" if flags.lines else "text begin")
        if char == "$":
            return Assertion("line end" if flags.lines else "text end")
        if char == "\\":
            if self._peek() in _ASSERTIONS and self._peek():
                return Assertion(_ASSERTIONS[self._next()])
            accepts = self._class_escape() or _equals(self._char_escape())
            return Single(_folded(accepts) if flags.fold else accepts)
        return self._literal(char, flags)

    def _literal(self, char: str, flags: _Flags) -> Single:
        accepts = _equals(char)
        return Single(_folded(accepts) if flags.fold else accepts)

    def _literal_run(self, flags: _Flags) -> list[Node]:
        start = self._at + 2
        end = self._text.find("\\E", start)
        body = self._text[start:] if end < 0 else self._text[start:end]
        self._at = len(self._text) if end < 0 else end + 2
        parts: list[Node] = [self._literal(char, flags) for char in body]
        if parts:
            parts[-1] = self._repeated(parts[-1])
        return parts

    def _group(self, flags: _Flags) -> Node:
        start = self._at - 1
        if self._peek() == "?":
            flags = self._group_opening(flags, start)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _fault("expression nests too deeply", self._text[start:])
        node = self._alternatives(flags)
        self._depth -= 1
        if self._next() != ")":
            raise _fault("missing closing )", self._text)
        return node

    def _group_opening(self, flags: _Flags, start: int) -> _Flags:
        """Reads ``?:``, ``?P<name>``, ``?<name>`` or ``?flags:``."""
        for opening in ("?P<", "?<"):
            if self._peek(len(opening)) == opening:
                close = self._text.find(">", self._at)
                name = self._text[self._at + len(opening) : max(close, 0)]
                if close < 0 or not name or not name.replace("_", "a").isalnum():
                    raise _fault("invalid named capture", self._text[start:])
                self._at = close + 1
                return flags
        parsed = self._flags(flags, ":")
        if parsed is None:
            raise _fault("invalid or unsupported Perl syntax", self._text[start : start + 4])
        return parsed

    def _flag_change(self, flags: _Flags) -> _Flags | None:
        """``(?flags)``: in force until the group ends."""
        if self._peek(2) != "(?":
            return None
        before = self._at
        self._at += 1
        parsed = self._flags(flags, ")")
        if parsed is None:
            self._at = before
        return parsed

    def _flags(self, flags: _Flags, end: str) -> _Flags | None:
        """Reads ``?i-s`` and the end; None, at the same place, if it is something else."""
        match = _FLAGS.match(self._text, self._at)
        if match is None or match["end"] != end:
            return None
        self._at = match.end()
        for names, value in ((match["on"], True), (match["off"] or "", False)):
            if "i" in names:
                flags = replace(flags, fold=value)
            if "m" in names:
                flags = replace(flags, lines=value)
            if "s" in names:
                flags = replace(flags, dot_newline=value)
        return flags

    # Classes and escapes -----------------------------------------------------------------------

    def _bracket(self) -> Accepts:
        start = self._at - 1
        negate = self._peek() == "^"
        self._at += negate
        parts: list[Accepts] = []
        first = True
        while self._peek() != "]" or first:
            if self._peek() == "":
                raise _fault("missing closing ]", self._text[start:])
            first = False
            named = self._bracket_class()
            if named is not None:
                parts.append(named)
                continue
            begin = self._at
            low = high = self._bracket_char(start)
            if self._peek() == "-" and self._peek(2) not in ("-", "-]"):
                self._at += 1
                high = self._bracket_char(start)
                if high < low:
                    raise _fault("invalid character class range", self._text[begin : self._at])
            parts.append(_between(low, high))
        self._at += 1
        accepts = _either(parts)
        return _negated(accepts) if negate else accepts

    def _bracket_class(self) -> Accepts | None:
        if self._peek(2) == "[:":
            close = self._text.find(":]", self._at + 2)
            if close >= 0:
                name = self._text[self._at + 2 : close]
                known = _POSIX.get(name.removeprefix("^"))
                if known is None:
                    raise _fault("invalid character class range", self._text[self._at : close + 2])
                self._at = close + 2
                return _negated(known) if name.startswith("^") else known
        if self._peek() == "\\":
            self._at += 1
            named = self._class_escape()
            if named is None:
                self._at -= 1
            return named
        return None

    def _bracket_char(self, start: int) -> str:
        char = self._next()
        if char == "":
            raise _fault("missing closing ]", self._text[start:])
        return self._char_escape() if char == "\\" else char

    def _class_escape(self) -> Accepts | None:
        """``d D w W s S`` or ``p{..}`` after a backslash; None, reading nothing, otherwise."""
        char = self._peek()
        if char and char in "dws":
            self._at += 1
            return _PERL[char]
        if char and char in "DWS":
            self._at += 1
            return _negated(_PERL[char.lower()])
        if char not in ("p", "P"):
            return None
        start = self._at - 1
        self._at += 1
        name = self._next()
        if name == "{":
            close = self._text.find("}", self._at)
            if close < 0:
                raise _fault("invalid character class range", self._text[start:])
            name = self._text[self._at : close]
            self._at = close + 1
        negate = (char == "P") != name.startswith("^")
        name = name.removeprefix("^")
        if _CATEGORY.fullmatch(name) is None:
            raise _fault("invalid character class range", self._text[start : self._at])

        def known(c: str) -> bool:
            return name == "Any" or unicodedata.category(c).startswith(name)

        return _negated(known) if negate else known

    def _char_escape(self) -> str:
        """The character that the escape after a backslash stands for."""
        start = self._at - 1
        char = self._next()
        if char in _CONTROL:
            return _CONTROL[char]
        if char in _PUNCTUATION:
            return char
        if char == "":
            raise _fault("trailing backslash at end of expression", self._text[start:])
        code = None
        if char == "x":
            code = self._hex_code()
        elif char in tuple("1234567") and self._peek() not in tuple("01234567"):
            pass  # a backreference
        elif char in tuple("01234567"):
            digits = char
            while len(digits) < 3 and self._peek() in tuple("01234567"):
                digits += self._next()
            code = int(digits, 8)
        if code is None or code > 0x10FFFF:
            raise _fault("invalid escape sequence", self._text[start : self._at])
        return chr(code)

    def _hex_code(self) -> int | None:
        if self._peek() == "{":
            close = self._text.find("}", self._at)
            digits = self._text[self._at + 1 : max(close, 0)]
            self._at = max(close + 1, self._at)
        else:
            digits = self._peek(2)
            self._at += 2
            if len(digits) < 2:
                return None
        if not 1 <= len(digits) <= 8 or any(d not in "0123456789abcdefABCDEF" for d in digits):
            return None
        return int(digits, 16)


def _equals(char: str) -> Accepts:
    return lambda c: c == char


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
