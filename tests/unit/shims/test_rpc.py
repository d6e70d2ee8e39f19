"""The shim's ttrpc: calls, errors, deadlines, and what a peer should not send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2 as v3
from protos.ttrpc import ttrpc_pb2
from shims.loop import Future, Loop
from shims.rpc import Client, Server, bind
from supervisord.contracts.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from supervisord.ttrpc import frames

T = TypeVar("T")


def turn(loop: Loop) -> None:
    """One turn that does not wait."""
    loop.soon(lambda: None)
    loop.turn()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def do(loop: Loop, work: Coroutine[Any, Any, T]) -> T:
    return loop.run_until(loop.spawn(work, "test"))


class Impl:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.gate: Future[None] = Future(loop)
        self.finished = 0

    async def Connect(self, request: Any) -> v3.ConnectResponse:
        if request.id == "bad":
            raise InvalidArgument("id: bad")
        if request.id == "bug":
            raise ValueError("a defect")
        return v3.ConnectResponse(version=request.id)

    async def Wait(self, request: Any) -> v3.WaitResponse:
        await self.gate
        self.finished += 1
        return v3.WaitResponse(exit_status=5)

    async def Start(self, request: Any) -> v3.StartResponse:
        await self.loop.sleep(0.02)
        self.finished += 1
        return v3.StartResponse()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


for _name in (
    "State",
    "Create",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Stats",
    "Shutdown",
):
    setattr(Impl, _name, Impl.Connect)


@pytest.fixture
def served(loop: Loop, tmp_path: Path) -> Iterator[tuple[Impl, Server, str]]:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    impl = Impl(loop)
    methods = bind(v3.DESCRIPTOR.services_by_name["Task"], Impl)
    server = Server(loop, listener.detach(), methods, impl, abandonable=("Wait",))
    yield impl, server, path
    server.close()


async def _call(client: Client, method: str, request: Any, kind: Any, seconds: float = 5) -> Any:
    return await client.call(
        "containerd.task.v3.Task", method, request, kind, seconds=seconds, metadata={"a": "b"}
    )


def test_calls_and_their_errors(loop: Loop, served: tuple[Impl, Server, str]) -> None:
    client = Client(loop, served[2])
    big = "x" * 3_000_000
    for id in ("here", big):
        answer = do(loop, _call(client, "Connect", v3.ConnectRequest(id=id), v3.ConnectResponse))
        assert answer.version == id
    with pytest.raises(InvalidArgument, match="id: bad"):
        do(loop, _call(client, "Connect", v3.ConnectRequest(id="bad"), Empty))
    with pytest.raises(Exception, match="ValueError: a defect"):
        do(loop, _call(client, "Connect", v3.ConnectRequest(id="bug"), Empty))
    with pytest.raises(Unimplemented):
        do(loop, _call(client, "Absent", Empty(), Empty))
    with pytest.raises(Unavailable):
        Client(loop, served[2] + "x")
    client.close()
    with pytest.raises(Unavailable):
        do(loop, _call(client, "Connect", v3.ConnectRequest(), Empty))


def test_waits_end_with_their_deadline_or_connection(
    loop: Loop, served: tuple[Impl, Server, str]
) -> None:
    impl, server, path = served
    client = Client(loop, path)
    with pytest.raises(DeadlineExceeded):
        do(loop, _call(client, "Wait", v3.WaitRequest(), v3.WaitResponse, 0.02))
    do(loop, loop.sleep(0.02))
    assert not impl.gate._callbacks
    task = loop.spawn(_call(client, "Wait", v3.WaitRequest(), v3.WaitResponse), "wait")
    start = loop.spawn(_call(client, "Start", v3.StartRequest(), v3.StartResponse), "start")
    do(loop, loop.sleep(0.01))
    assert impl.gate._callbacks
    client.close()
    for lost in (task, start):
        with pytest.raises(Unavailable):
            loop.run_until(lost)
    do(loop, loop.sleep(0.05))
    assert not impl.gate._callbacks
    assert not server.peers
    assert impl.finished == 1  # what was begun is carried through


def test_nonsense_is_answered_and_survived(loop: Loop, served: tuple[Impl, Server, str]) -> None:
    _, server, path = served
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(path)
    reader = frames.FrameReader()
    request = ttrpc_pb2.Request(service="containerd.task.v3.Task", method="Connect")
    for stream, data, code in (
        (1, b"\xff\xff", 3),
        (2, request.SerializeToString(), 3),
        (3, request.SerializeToString(), 0),
        (3, request.SerializeToString(), 3),
    ):
        for byte in frames.encode(stream, frames.REQUEST, 0, data):
            raw.send(bytes([byte]))
            turn(loop)
        raw.setblocking(False)
        got: list[frames.Frame] = []
        while not got:
            turn(loop)
            try:
                got = reader.feed(raw.recv(4096))
            except BlockingIOError:
                continue
        assert ttrpc_pb2.Response.FromString(got[0].data).status.code == code
    raw.setblocking(True)
    raw.send(struct.pack(">IIBB", 0xFFFFFFFF, 5, 1, 0))
    raw.close()
    do(loop, loop.sleep(0.02))
    assert not server.peers
