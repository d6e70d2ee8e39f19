"""Forwarding through a real socket."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.events import events_pb2 as ev
from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2 as pb
from supervisord.contracts.errors import InvalidArgument
from supervisord.events import ttrpc_service
from supervisord.events.exchange import Exchange
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.server import Server

NAME = "containerd.services.events.ttrpc.v1.Events"


async def test_forward(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "daemon.sock.ttrpc")
    ttrpc_service.listen(path).close()
    sock = ttrpc_service.listen(path)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660
    exchange = Exchange()
    server = Server([ttrpc_service.service(exchange)])
    await server.start(sock)
    client = await Client.connect(path)
    subscription = exchange.subscribe(["event.container_id==web"])
    request = pb.ForwardRequest()
    request.envelope.timestamp.FromNanoseconds(now := time.time_ns())
    request.envelope.namespace = "ns"
    request.envelope.topic = "/tasks/oom"
    request.envelope.event.type_url = "containerd.events.TaskOOM"
    request.envelope.event.value = ev.TaskOOM(container_id="web").SerializeToString()
    await client.call(NAME, "Forward", request, Empty, timeout=5)
    event = await anext(subscription)
    assert (event.timestamp, event.namespace, event.topic) == (now, "ns", "/tasks/oom")
    with pytest.raises(InvalidArgument, match="envelope"):
        await client.call(NAME, "Forward", pb.ForwardRequest(), Empty, timeout=5)
    request.envelope.topic = "bad"
    with pytest.raises(InvalidArgument, match="must start with"):
        await client.call(NAME, "Forward", request, Empty, timeout=5)
    client.close()
    await client.closed
    await server.close()
