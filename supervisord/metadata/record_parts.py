"""The parts that serialized records share: any values, times, extensions."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from supervisord.contracts.typed import TypedValue, from_any

_SECOND = 1_000_000_000


def to_any(value: TypedValue) -> Any | None:
    """None, an absent field, for an empty value."""
    return packed(value) if value else None


def packed(value: TypedValue) -> Any:
    """Also for an empty value."""
    return Any(type_url=value.type_url, value=value.value)


def timestamp(nanoseconds: int) -> Timestamp:
    """The wire's form of a time."""
    seconds, nanos = divmod(nanoseconds, _SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(value: Timestamp) -> int:
    """Back from the wire's form."""
    return value.seconds * _SECOND + value.nanos


def to_anys(values: Mapping[str, TypedValue]) -> dict[str, Any]:
    """Extensions as they are kept."""
    return {key: packed(value) for key, value in values.items()}


def from_anys(values: Mapping[str, Any]) -> dict[str, TypedValue]:
    """Extensions as the contracts have them."""
    return {key: from_any(value) for key, value in values.items()}
