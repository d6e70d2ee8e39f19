"""containerd.services.events.ttrpc.v1.Events: where shims forward their events to.

The daemon serves it on ``<grpc address>.ttrpc``; see ``listen``. The namespace is that of the
envelope.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.events import Envelope, Publisher
from supervisord.contracts.typed import from_any
from supervisord.ttrpc.server import Context, Service, bind

_BACKLOG = 1024


class EventsTtrpcService:
    """The implementation."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def Forward(self, request: events_ttrpc_pb2.ForwardRequest, context: Context) -> Empty:
        """Delivers one event. Raises InvalidArgument."""
        if not request.HasField("envelope"):
            raise InvalidArgument("envelope: must be set")
        envelope = request.envelope
        self._publisher.forward(
            Envelope(
                envelope.timestamp.seconds * 1_000_000_000 + envelope.timestamp.nanos,
                envelope.namespace,
                envelope.topic,
                from_any(envelope.event),
            )
        )
        return Empty()


def service(publisher: Publisher) -> Service:
    """The service, bound."""
    descriptor = events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"]
    return bind(descriptor, EventsTtrpcService(publisher))


def listen(path: str, uid: int = 0, gid: int = 0) -> socket.socket:
    """A listening unix socket at ``path`` for its owner only; a stale one is dropped. The caller
    has made sure that no other daemon serves there."""
    Path(path).parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        Path(path).chmod(0o660)
        os.chown(path, uid, gid)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
