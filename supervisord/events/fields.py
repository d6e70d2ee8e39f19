"""What filters can ask of an event: ``topic``, ``namespace`` and ``event.FIELD``.

A payload is decoded once per event, and only when some filter asks for a field of it. As with
containerd, text fields, booleans, messages in messages and string maps can be asked for; numbers,
times and lists cannot, and an empty text is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from protos.containerd.events import events_pb2
from supervisord.contracts.events import Envelope
from supervisord.contracts.filters import lookup
from supervisord.contracts.typed import TypedValue, from_any

_pool = descriptor_pool.Default()
_pool.FindFileByName(events_pb2.DESCRIPTOR.name)  # importing it registered the payload types


@lru_cache(maxsize=256)
def _kind(name: str) -> type[Message] | None:
    try:
        return GetMessageClass(_pool.FindMessageTypeByName(name))
    except KeyError:
        return None


def decode(value: TypedValue) -> Message | None:
    """The payload as a message; None for a type that is not known, or bytes that are not it."""
    kind = _kind(value.type_url.rpartition("/")[2])
    if kind is None:
        return None
    try:
        return kind.FromString(value.value)
    except DecodeError:
        return None


class EventFields:
    """The adaptor (contracts.filters) of one event."""

    __slots__ = ("_decoded", "_envelope", "_message")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._decoded = False
        self._message: Message | None = None

    def __call__(self, path: Sequence[str]) -> tuple[str, bool]:
        """The value at a fieldpath, and whether it is there."""
        if path[0] == "topic":
            return self._envelope.topic, bool(self._envelope.topic)
        if path[0] == "namespace":
            return self._envelope.namespace, bool(self._envelope.namespace)
        if path[0] != "event":
            return "", False
        if not self._decoded:
            self._message = decode(self._envelope.event)
            self._decoded = True
        return _field(self._message, path[1:])


def _field(message: Message | None, path: Sequence[str]) -> tuple[str, bool]:
    if message is None or not path:
        return "", False
    field = message.DESCRIPTOR.fields_by_name.get(path[0])
    if field is None:
        return "", False
    value: Any = getattr(message, field.name)
    if isinstance(value, Mapping):
        texts = {key: text for key, text in value.items() if isinstance(text, str)}
        return lookup(path[1:], texts)
    if isinstance(value, str):
        return value, bool(value)
    if isinstance(value, bool):
        return str(value).lower(), True
    if field.type == FieldDescriptor.TYPE_MESSAGE and isinstance(value, Message):
        if not message.HasField(field.name):
            return "", False
        inner = decode(from_any(value)) if isinstance(value, AnyMessage) else value
        return _field(inner, path[1:])
    return "", False
