"""Sizes as people write them: ``20GiB``, ``500mb``, ``4096``. Units are powers of 1024, as
containerd reads them."""

from __future__ import annotations

import re

from .errors import InvalidArgument

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE | re.ASCII)


def in_bytes(text: str, field: str) -> int:
    """Raises InvalidArgument that names ``field``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"{field}: {text!r} is not a size such as 20GiB")
    return int(float(found[1]) * 1024 ** _UNITS[found[2].lower()])
