"""Containers as serialized protobufs, and back: the form that rows keep and lists serve."""

from __future__ import annotations

from collections.abc import Sequence

from protos.containerd.services.containers.v1 import containers_pb2 as pb
from supervisord.contracts import filters
from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.typed import from_any

from .record_parts import from_anys, nanoseconds, timestamp, to_any, to_anys


def encode(container: Container) -> bytes:
    """The serialized ``containerd.services.containers.v1.Container``."""
    return pb.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=pb.Container.Runtime(
            name=container.runtime.name, options=to_any(container.runtime.options)
        ),
        spec=to_any(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp(container.created_at),
        updated_at=timestamp(container.updated_at),
        extensions=to_anys(container.extensions),
        sandbox=container.sandbox,
    ).SerializeToString()


def decode(record: bytes) -> Container:
    """Raises google.protobuf.message.DecodeError, a ValueError for damaged records."""
    message = parse(record)
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=Runtime(message.runtime.name, from_any(message.runtime.options)),
        spec=from_any(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions=from_anys(message.extensions),
        sandbox=message.sandbox,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )


def parse(record: bytes) -> pb.Container:
    """The message itself. Raises ValueError for a damaged record."""
    try:
        return pb.Container.FromString(record)
    except Exception as error:  # DecodeError has no common base with the others
        raise ValueError(f"the container record does not parse: {error}") from error


def fields(record: bytes) -> filters.Adaptor:
    """What a container filter may name. Raises ValueError for a damaged record."""
    message = parse(record)

    def field(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "id":
                return message.id, bool(message.id)
            case "image":
                return message.image, bool(message.image)
            case "runtime" if len(path) > 1 and path[1] == "name":
                return message.runtime.name, bool(message.runtime.name)
            case "labels":
                return filters.lookup(path[1:], message.labels)
        return "", False

    return field
