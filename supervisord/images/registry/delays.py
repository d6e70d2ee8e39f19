"""How long to wait before a request is made again."""

from __future__ import annotations

import email.utils
import time

_FIRST = 0.25
_FACTOR = 2.0
_LONGEST = 30.0
_MOST_ASKED = 120.0


def delay(attempt: int, retry_after: str | None = None) -> float:
    """Seconds after that many attempts, 1 for the first. What the server asks for counts, up to two
    minutes (RFC 9110, section 10.2.3: seconds or a date)."""
    own = min(_FIRST * _FACTOR ** (attempt - 1), _LONGEST)
    if not retry_after:
        return own
    text = retry_after.strip()
    if text.isdecimal():
        return min(max(float(text), own), _MOST_ASKED)
    try:
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return own
    return min(max(date - time.time(), own), _MOST_ASKED)
