"""Printing: plain aligned tables, JSON, and numbers that people can read.

A listing is a list of records (dicts); a table shows some of their keys, JSON all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

Record = Mapping[str, Any]
Columns = Sequence[tuple[str, str]]


def show(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """One line on stderr, which does not fail the command."""
    sys.stderr.write(f"sctl: {text}\n")


def listing(records: Sequence[Record], columns: Columns, *, format: str = "table") -> None:
    """Prints records as JSON or as a table of ``(TITLE, key)`` columns."""
    if format == "json":
        show_json(list(records))
        return
    rows = [[_cell(record.get(key)) for _, key in columns] for record in records]
    table([title for title, _ in columns], rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """An aligned table; the last column is not padded."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        show("  ".join([*cells, line[-1]]).rstrip())


def show_json(value: Any) -> None:
    """Indented JSON; times as RFC 3339, bytes as text."""
    show(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _cell(value: Any) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "-"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={value[key]}" for key in sorted(value))
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def labels_line(labels: Mapping[str, str]) -> str:
    """``a=1,b=2`` in order of key."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def human_bytes(count: float) -> str:
    """``12.3 MiB``; whole bytes below one KiB."""
    if count < 1024:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def moment(stamp: Timestamp) -> datetime | None:
    """A protobuf time in UTC; None when it is unset."""
    if not stamp.seconds and not stamp.nanos:
        return None
    return datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1000)


def rfc3339(value: datetime) -> str:
    """``2026-01-02T03:04:05.678901Z``."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def age(value: datetime | None) -> str:
    """``3 minutes``: how long ago, in the largest unit that is at least two."""
    if value is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - value).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}s"
    count = int(seconds)
    return f"{count} second{'' if count == 1 else 's'}"
