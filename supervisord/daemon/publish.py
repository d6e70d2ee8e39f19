"""``supervisord publish``: sends one event to a running daemon, as shims do that cannot do it
themselves. The payload, a serialized ``google.protobuf.Any``, comes on the standard input.

``main`` calls it; flags and input are those of containerd's command of the same name.
"""

from __future__ import annotations

import sys
from typing import Any

_SECONDS = 10.0
_MAX_PAYLOAD = 4 << 20


def publish(address: str, namespace: str, topic: str) -> int:
    """Answers the exit status: 1 with one line of why."""
    import grpc
    from google.protobuf.any_pb2 import Any as Payload
    from google.protobuf.message import DecodeError

    from protos.containerd.services.events.v1 import events_pb2, events_pb2_grpc

    if not topic:
        return _refused("topic required to publish event")
    data = sys.stdin.buffer.read(_MAX_PAYLOAD + 1)
    try:
        payload = Payload.FromString(data)
    except DecodeError as error:
        return _refused(f"the standard input is no google.protobuf.Any: {error}")
    if len(data) > _MAX_PAYLOAD:
        return _refused(f"the event is larger than {_MAX_PAYLOAD} bytes")
    with grpc.insecure_channel(f"unix:{address.removeprefix('unix://')}") as channel:
        stub: Any = events_pb2_grpc.EventsStub(channel)
        request = events_pb2.PublishRequest(topic=topic, event=payload)
        metadata = (("containerd-namespace", namespace),)
        try:
            stub.Publish(request, metadata=metadata, timeout=_SECONDS)
        except grpc.RpcError as error:
            return _refused(str(error.details()))
    return 0


def _refused(reason: str) -> int:
    print(f"supervisord: publish: {reason}", file=sys.stderr)
    return 1
