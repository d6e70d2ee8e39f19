"""What a shim is sent: every field of a request that the daemon only hands on."""

from __future__ import annotations

import socket
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2
from supervisord.contracts.typed import TypedValue
from supervisord.runtime.shim import Shim
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.server import Context, Server, bind


class Recorder:
    """A shim that does nothing."""

    def __init__(self) -> None:
        self.got: list[shim_pb2.UpdateTaskRequest] = []
        self.namespaces: list[str] = []

    async def Update(self, request: shim_pb2.UpdateTaskRequest, context: Context) -> Empty:
        self.got.append(request)
        self.namespaces.append(context.metadata["containerd-namespace-ttrpc"])
        return Empty()


async def test_an_update_has_its_annotations(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    recorder = Recorder()
    server = Server([bind(shim_pb2.DESCRIPTOR.services_by_name["Task"], recorder)])
    await server.start(listener)
    shim = Shim(await Client.connect(path), "ns", "one", 3)
    try:
        await shim.update(TypedValue("resources", b"{}"), {"io.kubernetes.pod": "p"})
    finally:
        shim.close()
        await server.close()
    (request,) = recorder.got
    assert (request.id, request.resources.value) == ("one", b"{}")
    assert dict(request.annotations) == {"io.kubernetes.pod": "p"}
    assert recorder.namespaces == ["ns"]
