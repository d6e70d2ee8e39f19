"""Durations in the configuration, written as Go does: ``1h30m``, ``100ms``, ``0s``."""

from __future__ import annotations

import re

from supervisord.contracts.errors import InvalidArgument

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


def seconds(text: str, key: str) -> float:
    """The duration in seconds. Raises InvalidArgument naming the key."""
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            break
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if not text or position < len(text):
        raise InvalidArgument(f"{key}: {text!r} is no duration such as 100ms, 2s or 1h30m")
    return total
