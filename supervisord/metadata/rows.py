"""Rows to things, where one damaged row must not hide the others (every List)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from supervisord.contracts.errors import DataLoss

T = TypeVar("T")

log = logging.getLogger(__name__)

DAMAGED: Counter[str] = Counter()
"""How often a damaged record was left out, by noun: for a metric."""


def readable(rows: Iterable[Any], convert: Callable[[Any], T], noun: str) -> Iterator[T]:
    """The things that the rows describe; a row that does not parse is reported and left out."""
    for row in rows:
        try:
            yield convert(row)
        except (ValueError, TypeError, DataLoss) as error:
            DAMAGED[noun] += 1
            log.error("a damaged %s record is left out: %s: %.200r", noun, error, row)
