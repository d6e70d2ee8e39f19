"""Labels in rows: their JSON form, and the rules by which an update changes them.

Used by every store; touches no database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from supervisord.contracts.errors import DataLoss, InvalidArgument
from supervisord.contracts.identifiers import check_labels

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(dict[str, str])
_EMPTY = b"{}"

LABELS = "labels."


def pack(values: Mapping[str, str]) -> bytes:
    """The form in a row."""
    return _ENCODER.encode(dict(values)) if values else _EMPTY


def unpack(stored: bytes) -> dict[str, str]:
    """Back from the row. Raises DataLoss if it is damaged."""
    if stored == _EMPTY:
        return {}
    try:
        return _DECODER.decode(stored)
    except (msgspec.MsgspecError, TypeError) as error:
        raise DataLoss(f"a record is damaged: its labels do not parse: {error}") from error


def checked(values: Mapping[str, str], field: str) -> dict[str, str]:
    """The labels to keep: an empty value is the same as none, as in containerd.

    Raises InvalidArgument."""
    check_labels(values, field)
    return {key: value for key, value in values.items() if value}


def updated(
    current: Mapping[str, str],
    wanted: Mapping[str, str],
    fieldpaths: Sequence[str],
    thing: str,
) -> dict[str, str]:
    """Labels after an update of something whose only mutable field they are: all of them without
    a path or with ``labels``, one with ``labels.KEY``. ``thing`` names it in errors.

    Raises InvalidArgument for another path."""
    labels = dict(current)
    if not fieldpaths:
        return dict(wanted)
    for path in fieldpaths:
        if path == "labels":
            labels = dict(wanted)
        elif path.startswith(LABELS):
            key = path.removeprefix(LABELS)
            labels[key] = wanted.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{path}" field on {thing}: invalid argument')
    return labels
