"""Sandboxes as serialized protobufs, and back: the form that rows keep and lists serve."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.types import types_pb2 as pb
from supervisord.contracts import filters
from supervisord.contracts.containers import Runtime
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.typed import TypedValue, from_any

_SECOND = 1_000_000_000


def encode(sandbox: Sandbox) -> bytes:
    """The serialized ``containerd.types.Sandbox``."""
    return pb.Sandbox(
        sandbox_id=sandbox.id,
        runtime=pb.Sandbox.Runtime(
            name=sandbox.runtime.name, options=_any(sandbox.runtime.options)
        ),
        spec=_any(sandbox.spec),
        labels=sandbox.labels,
        created_at=_timestamp(sandbox.created_at),
        updated_at=_timestamp(sandbox.updated_at),
        extensions={
            key: Any(type_url=value.type_url, value=value.value)
            for key, value in sandbox.extensions.items()
        },
        sandboxer=sandbox.sandboxer,
    ).SerializeToString()


def decode(record: bytes) -> Sandbox:
    """Raises ValueError for a damaged record."""
    message = parse(record)
    return Sandbox(
        id=message.sandbox_id,
        runtime=Runtime(message.runtime.name, from_any(message.runtime.options)),
        spec=from_any(message.spec),
        labels=dict(message.labels),
        extensions={key: from_any(value) for key, value in message.extensions.items()},
        sandboxer=message.sandboxer,
        created_at=message.created_at.seconds * _SECOND + message.created_at.nanos,
        updated_at=message.updated_at.seconds * _SECOND + message.updated_at.nanos,
    )


def parse(record: bytes) -> pb.Sandbox:
    """The message itself. Raises ValueError for a damaged record."""
    try:
        return pb.Sandbox.FromString(record)
    except Exception as error:  # DecodeError has no common base with the others
        raise ValueError(f"the sandbox record does not parse: {error}") from error


def adaptor(message: pb.Sandbox) -> filters.Adaptor:
    """The fields that a sandbox filter may name."""

    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return message.sandbox_id, True
        if path[0] == "labels":
            return filters.lookup(path[1:], message.labels)
        return "", False

    return field


def _any(value: TypedValue) -> Any | None:
    return Any(type_url=value.type_url, value=value.value) if value else None


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, _SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)
