"""Snapshots between the wire's messages and the contracts', both ways: the service answers with
them, and a proxy is asked with them."""

from __future__ import annotations

from protos.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from supervisord.contracts.snapshots import Info, Kind

from .wire import nanoseconds, timestamp

BATCH = 100
"""Snapshots in one message of a list."""

_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


def to_info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=pb.Kind.ValueType(int(info.kind)),
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def from_info(info: pb.Info) -> Info:
    return Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS.get(info.kind, Kind.UNKNOWN),
        created_at=nanoseconds(info.created_at),
        updated_at=nanoseconds(info.updated_at),
        labels=dict(info.labels),
    )
