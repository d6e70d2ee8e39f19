"""Reading what people type: durations, sizes, ``key=value`` pairs, signals.

Each function is an argparse ``type``: it raises ``argparse.ArgumentTypeError`` with the rule.
"""

from __future__ import annotations

import re
import signal
from argparse import ArgumentTypeError
from collections.abc import Sequence

from .errors import CliError

_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(i?b)?\Z", re.IGNORECASE)


def duration(text: str) -> float:
    """Seconds from ``10``, ``10s``, ``1m30s``, ``500ms``; ``0`` means none."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(f"(?:{_PART.pattern})+", text):
        raise ArgumentTypeError(f"{text!r} is not a duration like 10s, 1m30s or 500ms")
    return sum(float(number) * _UNIT[unit] for number, unit in _PART.findall(text))


def size(text: str) -> int:
    """Bytes from ``1048576``, ``64M``, ``1GiB``: the suffixes are powers of 1024."""
    match = _SIZE.match(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a size like 67108864, 64M or 1G")
    return int(match[1]) << (10 * " kmgt".index(match[2].lower() or " "))


def limit(text: str) -> int:
    """As ``size``; ``-1`` means no limit."""
    return -1 if text == "-1" else size(text)


def pair(text: str) -> tuple[str, str]:
    """``key=value``; a key alone has the value ``true``, as ctr reads it."""
    key, sign, value = text.partition("=")
    if not key:
        raise ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value if sign else "true"


def label_change(text: str) -> tuple[str, str]:
    """``key=value`` sets a label; ``key=`` or a key alone clears it."""
    key, _, value = text.partition("=")
    if not key:
        raise ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def signal_number(text: str) -> int:
    """A signal from ``9``, ``KILL``, ``SIGKILL`` or ``SIGRTMIN+3``."""
    if text.isdecimal():
        number = int(text)
        if 0 < number <= signal.SIGRTMAX:
            return number
        raise ArgumentTypeError(f"{text} is not a signal: 1 to {int(signal.SIGRTMAX)}")
    name = text.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+")
    try:
        number = int(signal.Signals["SIG" + base])
    except KeyError:
        raise ArgumentTypeError(f"{text!r} is not the name of a signal") from None
    if sign:
        if base != "RTMIN" or not offset.isdecimal():
            raise ArgumentTypeError(f"{text!r} is not the name of a signal")
        number += int(offset)
    return number


def labels_of(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A dict of pairs; the last one of a key wins."""
    return dict(pairs)


def require(condition: object, message: str) -> None:
    """Raises CliError(message) unless the condition holds."""
    if not condition:
        raise CliError(message)
