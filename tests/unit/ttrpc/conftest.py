"""A real server on a real unix socket, and a Task service that shows what reaches it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2
from supervisord.contracts import errors
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.server import Context, Server, bind

TASK = shim_pb2.DESCRIPTOR.services_by_name["Task"]
NAME = "containerd.task.v3.Task"


class Shim:
    """A few methods of the Task service."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.cancelled = asyncio.Event()

    async def Create(
        self, request: shim_pb2.CreateTaskRequest, context: Context
    ) -> shim_pb2.CreateTaskResponse:
        self.contexts.append(context)
        if request.id == "taken":
            raise errors.AlreadyExists("task taken: already exists")
        if request.id == "defect":
            raise ValueError("a defect")
        return shim_pb2.CreateTaskResponse(pid=len(request.bundle))

    async def Wait(self, request: shim_pb2.WaitRequest, context: Context) -> shim_pb2.WaitResponse:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return shim_pb2.WaitResponse()

    async def State(
        self, request: shim_pb2.StateRequest, context: Context
    ) -> shim_pb2.StateResponse:
        return shim_pb2.StateResponse(bundle="x" * int(request.id))

    async def Kill(self, request: shim_pb2.KillRequest, context: Context) -> Empty:
        return Empty()


@pytest.fixture
def shim() -> Shim:
    return Shim()


@pytest.fixture
async def server(tmp_path: Path, shim: Shim) -> AsyncIterator[Server]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    server = Server([bind(TASK, shim)])
    serving = asyncio.ensure_future(server.serve(sock))
    yield server
    await server.close()
    await serving


@pytest.fixture
async def connect(server: Server, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    clients: list[Client] = []

    async def make() -> Client:
        clients.append(await Client.connect(str(tmp_path / "s")))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
        await client.closed
