"""Between the wire's messages and the contracts' nouns; nothing here decides anything.

Times are nanoseconds in the contracts and Timestamps on the wire; 0 is an absent one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.types import types_pb2
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.images import Descriptor
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.typed import TypedValue, from_any

if TYPE_CHECKING:
    from google.protobuf.field_mask_pb2 import FieldMask

_SECOND = 1_000_000_000


def timestamp(nanoseconds: int) -> Timestamp | None:
    """None, an absent field, for 0."""
    if not nanoseconds:
        return None
    return Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)


def nanoseconds(value: Timestamp) -> int:
    """The contracts' form of a timestamp."""
    return value.seconds * _SECOND + value.nanos


def to_any(value: TypedValue) -> Any | None:
    """None, an absent field, for an empty value."""
    return Any(type_url=value.type_url, value=value.value) if value else None


def typed_map(values: Mapping[str, Any]) -> dict[str, TypedValue]:
    """A map of Any values in the contracts' form."""
    return {key: from_any(value) for key, value in values.items()}


def to_descriptor(value: Descriptor) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(
        media_type=value.media_type,
        digest=value.digest,
        size=value.size,
        annotations=value.annotations,
    )


def from_descriptor(value: types_pb2.Descriptor) -> Descriptor:
    return Descriptor(value.media_type, value.digest, value.size, dict(value.annotations))


def to_mounts(mounts: Iterable[Mount]) -> list[types_pb2.Mount]:
    return [
        types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
        for m in mounts
    ]


def from_mounts(mounts: Iterable[types_pb2.Mount]) -> list[Mount]:
    return [Mount(m.type, m.source, tuple(m.options), m.target) for m in mounts]


def paths(mask: FieldMask) -> Sequence[str]:
    """The paths of an update mask; none means all that may change."""
    return tuple(mask.paths)


def required(present: bool, field: str) -> None:
    """Raises InvalidArgument naming a message field that is missing."""
    if not present:
        raise InvalidArgument(f"{field}: must be given")


def record(number: int, message: bytes) -> bytes:
    """A serialized message as a length-delimited field (number below 16) of another."""
    head = bytearray((number << 3 | 2,))
    size = len(message)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + message


def records(number: int, messages: Iterable[bytes]) -> bytes:
    """A repeated message field from the serialized messages: a list reply that is only a copy."""
    return b"".join([record(number, message) for message in messages])
