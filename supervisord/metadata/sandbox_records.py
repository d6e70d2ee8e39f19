"""Sandboxes as serialized protobufs, and back: the form that rows keep and lists serve."""

from __future__ import annotations

from collections.abc import Sequence

from protos.containerd.types import types_pb2 as pb
from supervisord.contracts import filters
from supervisord.contracts.containers import Runtime
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.typed import from_any

from .record_parts import from_anys, nanoseconds, timestamp, to_any, to_anys


def encode(sandbox: Sandbox) -> bytes:
    """The serialized ``containerd.types.Sandbox``."""
    return pb.Sandbox(
        sandbox_id=sandbox.id,
        runtime=pb.Sandbox.Runtime(
            name=sandbox.runtime.name, options=to_any(sandbox.runtime.options)
        ),
        spec=to_any(sandbox.spec),
        labels=sandbox.labels,
        created_at=timestamp(sandbox.created_at),
        updated_at=timestamp(sandbox.updated_at),
        extensions=to_anys(sandbox.extensions),
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
        extensions=from_anys(message.extensions),
        sandboxer=message.sandboxer,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )


def parse(record: bytes) -> pb.Sandbox:
    """The message itself. Raises ValueError for a damaged record."""
    try:
        return pb.Sandbox.FromString(record)
    except Exception as error:  # DecodeError has no common base with the others
        raise ValueError(f"the sandbox record does not parse: {error}") from error


def fields(record: bytes) -> filters.Adaptor:
    """What a sandbox filter may name. Raises ValueError for a damaged record."""
    message = parse(record)

    def field(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id":
            return message.sandbox_id, True
        if path[0] == "labels":
            return filters.lookup(path[1:], message.labels)
        return "", False

    return field
