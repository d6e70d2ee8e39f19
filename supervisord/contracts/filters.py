"""containerd's filter language, as List, Subscribe and the CLIs use it.

A list of filters matches when any of them matches; an empty list, and an empty filter, match
everything. One filter is a comma-separated list of selectors that must all hold::

    selector  := fieldpath [operator value]
    fieldpath := field ("." field)*
    field     := quoted in ", or one or more of A-Z a-z 0-9 _
    operator  := "==" | "!=" | "~="
    value     := quoted, or what comes until a comma or a space

A bare fieldpath asks for presence. ``==`` needs presence, ``!=`` does not, and ``~=`` searches
with a regular expression (contracts.expressions), where an absent field is an empty text. After
``~=`` the value may also be quoted in ``/`` or ``|``. Quotes take Go's backslash escapes. The
rules are those of containerd's ``pkg/filters``; unlike there, a malformed expression is refused
at once instead of matching nothing.

Everybody who lists something uses this; it touches no state.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import expressions
from .errors import InvalidArgument

MAX_FILTER = 16384
"""Characters in one filter."""

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]
"""Answers the value at a fieldpath, and whether it is present."""

_OPERATORS = "=!~"
_SEPARATORS = ",."
_QUOTES = '/|"'
_SPACES = "\t\n\v\f\r \x85\xa0"
_FIELD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_SIMPLE_ESCAPES = {
    "a": 7,
    "b": 8,
    "f": 12,
    "n": 10,
    "r": 13,
    "t": 9,
    "v": 11,
    "\\": 92,
}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition; ``operator`` is "" for presence. ``search`` is there for ``~=`` only."""

    fieldpath: tuple[str, ...]
    operator: str = ""
    value: str = ""
    search: Callable[[str], bool] | None = None

    def match(self, adaptor: Adaptor) -> bool:
        """Whether the thing behind the adaptor has it."""
        value, present = adaptor(self.fieldpath)
        if self.search is not None:
            return self.search(value)
        if self.operator == "==":
            return present and value == self.value
        if self.operator == "!=":
            return value != self.value
        return present


@dataclass(frozen=True, slots=True)
class Filter:
    """What ``parse`` makes of a list: any of the alternatives, all selectors of it."""

    alternatives: tuple[tuple[Selector, ...], ...]

    @property
    def always(self) -> bool:
        """Whether it matches everything, so that a caller need not look at its rows."""
        return not self.alternatives or () in self.alternatives

    def match(self, adaptor: Adaptor) -> bool:
        """Whether any of the filters matches."""
        if not self.alternatives:
            return True
        return any(
            all(selector.match(adaptor) for selector in selectors)
            for selectors in self.alternatives
        )


def parse(filters: Sequence[str]) -> Filter:
    """Raises InvalidArgument with the place where a filter is malformed."""
    return Filter(tuple(_Parser(text).selectors() if text else () for text in filters))


def lookup(path: Sequence[str], values: Mapping[str, str]) -> tuple[str, bool]:
    """The adaptor's answer for a map such as labels: the rest of the path, joined by dots, is
    the key."""
    value = values.get(".".join(path))
    return ("", False) if value is None else (value, True)


def quoted(text: str) -> str:
    """A value of a filter that stands for ``text``, whatever that is."""
    return json.dumps(text, ensure_ascii=False)  # its escapes are among Go's


class _Parser:
    """Scanner and parser of one filter. A token is (position, kind, text); kinds are ``end``,
    ``field``, ``value``, ``quoted``, ``separator``, ``operator``, ``illegal`` and ``other``."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_FILTER:
            raise InvalidArgument(f"filters: a filter has more than {MAX_FILTER} characters")
        self._text = text
        self._at = 0
        self._want_value = False
        self._problem = ""

    # Grammar -------------------------------------------------------------------------------

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while (char := self._peek()) != "":
            if char != ",":
                raise self._error(self._at + 1, f"unexpected input: {char}")
            self._scan()
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        fieldpath = [self._field()]
        while self._peek() == ".":
            self._scan()
            fieldpath.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(fieldpath))
        position, kind, operator = self._scan()
        if kind == "illegal":
            raise self._error(position, self._problem)
        if kind != "operator":
            raise self._error(position, 'expected an operator ("=="|"!="|"~=")')
        if operator not in ("==", "!=", "~="):
            raise self._error(position, f'unsupported operator "{operator}"')
        value_at = self._at
        value = self._value(any_quote=operator == "~=")
        search = None
        if operator == "~=":
            try:
                search = expressions.compile(value)
            except InvalidArgument as error:
                raise self._error(value_at, error.message) from None
        return Selector(tuple(fieldpath), operator, value, search)

    def _field(self) -> str:
        position, kind, text = self._scan()
        if kind == "field":
            return text
        if kind == "quoted":
            return self._unquote(position, text, any_quote=False)
        message = self._problem if kind == "illegal" else "expected field or quoted"
        raise self._error(position, message)

    def _value(self, *, any_quote: bool) -> str:
        position, kind, text = self._scan()
        if kind in ("value", "field"):
            return text
        if kind == "quoted":
            return self._unquote(position, text, any_quote=any_quote)
        message = self._problem if kind == "illegal" else "expected value or quoted"
        raise self._error(position, message)

    def _error(self, position: int, message: str) -> InvalidArgument:
        text = self._text
        where = text
        if position < len(text):
            where = f"{text[:position]} >|{text[position]}|< {text[position + 1 :]}"
        return InvalidArgument(f"filters: parse error: [{where}]: {message}")

    # Scanner -------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _scan(self) -> tuple[int, str, str]:
        while (char := self._peek()) != "" and _is_space(char):
            self._at += 1
        start = self._at
        self._at += len(char)
        kind = "other"
        if char == "":
            kind = "end"
        elif char in ("\0", "\ufffd"):
            self._problem = "unexpected null" if char == "\0" else "rune error"
            kind = "illegal"
        elif char in _QUOTES:
            kind = "quoted" if self._scan_quoted(char) else "illegal"
        elif char in _SEPARATORS:
            self._want_value = False
            kind = "separator"
        elif char in _OPERATORS:
            self._take(lambda c: c in _OPERATORS)
            self._want_value = True
            kind = "operator"
        elif self._want_value:
            self._take(_is_value)
            self._want_value = False
            kind = "value"
        elif char in _FIELD:
            self._take(lambda c: c in _FIELD)
            kind = "field"
        return start, kind, self._text[start : self._at]

    def _take(self, accept: Callable[[str], bool]) -> None:
        while (char := self._peek()) != "" and accept(char):
            self._at += 1

    def _scan_quoted(self, quote: str) -> bool:
        """Goes behind the closing quote; the escapes are checked when they are decoded."""
        while (char := self._peek()) != quote:
            if char in ("", "\n", "\0", "\ufffd"):
                self._problem = "quoted literal not terminated"
                return False
            self._at += 2 if char == "\\" else 1
        self._at += 1
        return True

    def _unquote(self, position: int, text: str, *, any_quote: bool) -> str:
        quote = text[0]
        if quote != '"' and not any_quote:
            raise self._error(position, "invalid quote encountered")
        body = text[1:-1]
        if "\\" not in body:
            return body
        out = bytearray()
        at = 0
        while at < len(body):
            if body[at] == "\\":
                decoded, at = self._escape(position, body, at + 1, quote)
                out += decoded
            else:
                out += body[at].encode(errors="surrogatepass")
                at += 1
        # An escape can make any byte; what is no UTF-8 stays comparable and matches no label.
        return out.decode(errors="surrogateescape")

    def _escape(self, position: int, body: str, at: int, quote: str) -> tuple[bytes, int]:
        """The bytes of the escape whose character after the backslash is at ``at``, and where
        it ends."""
        char = body[at : at + 1]
        if char in _SIMPLE_ESCAPES:
            return bytes([_SIMPLE_ESCAPES[char]]), at + 1
        if char and char == quote:
            return char.encode(), at + 1
        if char in _HEX_ESCAPES:
            end = at + 1 + _HEX_ESCAPES[char]
            code = _number(body[at + 1 : end], 16, _HEX_ESCAPES[char])
            if char == "x" and code is not None:
                return bytes([code]), end
            if code is not None and code <= 0x10FFFF:
                # As Go does it, a half of a surrogate pair becomes the replacement character.
                legal = chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd"
                return legal.encode(), end
        elif char and char in "01234567":
            code = _number(body[at : at + 3], 8, 3)
            if code is not None and code <= 255:
                return bytes([code]), at + 3
        else:
            raise self._error(position, "illegal escape sequence")
        raise self._error(position, "illegal numeric escape sequence")


def _number(digits: str, base: int, length: int) -> int | None:
    allowed = "0123456789abcdefABCDEF" if base == 16 else "01234567"
    if len(digits) != length or any(digit not in allowed for digit in digits):
        return None
    return int(digits, base)


def _is_space(char: str) -> bool:
    return char in _SPACES or unicodedata.category(char)[0] == "Z"


def _is_value(char: str) -> bool:
    if char.isascii():
        return "!" <= char <= "~" and char != ","
    return char != "\ufffd" and unicodedata.category(char)[0] in "LMNPS"
