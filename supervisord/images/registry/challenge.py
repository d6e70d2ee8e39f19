"""``WWW-Authenticate``: what a server wants to see before it serves (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r" +[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_PARAMETER = re.compile(
    r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))\s*"
)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """``scheme`` in lower case; ``parameters`` by their names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of all headers, in order. What breaks the grammar ends its header."""
    found: list[Challenge] = []
    for header in headers:
        found.extend(_parse_one(header))
    return found


def _parse_one(header: str) -> Iterable[Challenge]:
    position = 0
    while position < len(header):
        while position < len(header) and header[position] in " \t,":
            position += 1
        scheme = _TOKEN.match(header, position)
        if scheme is None:
            return
        position = scheme.end()
        parameters: dict[str, str] = {}
        opaque = _TOKEN68.match(header, position)
        position = opaque.end() if opaque else position
        while position < len(header) and opaque is None:
            parameter = _PARAMETER.match(header, position)
            if parameter is None:
                break
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
            parameters.setdefault(parameter[1].lower(), value)
            position = parameter.end()
            if position >= len(header) or header[position] != ",":
                break
            after = position + 1
            if _PARAMETER.match(header, after) is None:
                break
            position = after
        yield Challenge(scheme[0].lower(), parameters)
        if position < len(header) and header[position] not in " \t,":
            return
