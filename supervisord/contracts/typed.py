"""Values of a type that the daemon carries without looking inside (``google.protobuf.Any``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A type URL as containerd's clients write it (no ``type.googleapis.com/`` prefix is added
    or removed) and the serialized value."""

    type_url: str = ""
    value: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.type_url or self.value)


def pack(message: Message) -> TypedValue:
    """A protobuf message under its full name, as containerd's typeurl does it."""
    return TypedValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def from_any(value: Any) -> TypedValue:
    """The contract's form of an ``Any``."""
    return TypedValue(value.type_url, value.value)
