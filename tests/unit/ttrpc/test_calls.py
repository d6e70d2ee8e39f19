"""Client and server against each other: answers, errors, deadlines, lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from protos.containerd.task.v3 import shim_pb2
from protos.ttrpc import ttrpc_pb2
from supervisord.contracts import errors
from supervisord.ttrpc.client import Client
from supervisord.ttrpc.frames import MAX_DATA, REQUEST, RESPONSE, FrameReader, encode
from supervisord.ttrpc.server import Server, bind

from .conftest import NAME, TASK, Shim

Connect = Callable[[], Awaitable[Client]]
CREATE = (NAME, "Create")


async def create(client: Client, id: str, bundle: str = "") -> int:
    request = shim_pb2.CreateTaskRequest(id=id, bundle=bundle)
    answer = await client.call(*CREATE, request, shim_pb2.CreateTaskResponse, timeout=5)
    return answer.pid


async def test_many_calls_share_a_connection(connect: Connect) -> None:
    client = await connect()
    sizes = range(200)
    pids = await asyncio.gather(*(create(client, "a", "b" * size) for size in sizes))
    assert pids == list(sizes)


async def test_metadata_and_deadline_reach_the_handler(connect: Connect, shim: Shim) -> None:
    client = await connect()
    await client.call(
        *CREATE,
        shim_pb2.CreateTaskRequest(id="a"),
        shim_pb2.CreateTaskResponse,
        timeout=30,
        metadata={"containerd-namespace-ttrpc": "web"},
    )
    (context,) = shim.contexts
    assert context.metadata == {"containerd-namespace-ttrpc": "web"}
    assert context.timeout is not None and 29 < context.timeout <= 30


async def test_domain_errors_cross_the_wire(connect: Connect) -> None:
    client = await connect()
    with pytest.raises(errors.AlreadyExists, match=r"^task taken: already exists$"):
        await create(client, "taken")
    with pytest.raises(errors.Internal, match="ValueError: a defect"):
        await create(client, "defect")
    assert await create(client, "a", "bb") == 2


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
async def test_every_error_keeps_its_type(tmp_path: Path, kind: type[errors.Error]) -> None:
    class Raises:
        async def Create(self, request: object, context: object) -> object:
            raise kind("the rule")

    ours, theirs = socket.socketpair()
    server = Server([bind(TASK, Raises())])
    await server.adopt(theirs)
    client = await Client.from_socket(ours)
    with pytest.raises(kind, match=r"^the rule$") as caught:
        await create(client, "a")
    assert type(caught.value) is kind
    client.close()
    await client.closed
    await server.close()


async def test_unknown_service_and_method(connect: Connect) -> None:
    client = await connect()
    request = shim_pb2.CreateTaskRequest()
    with pytest.raises(errors.Unimplemented, match=r"^service no.Such$"):
        await client.call("no.Such", "Create", request, shim_pb2.CreateTaskResponse)
    with pytest.raises(errors.Unimplemented, match=r"^method Pause$"):
        await client.call(NAME, "Pause", request, shim_pb2.CreateTaskResponse)


async def test_a_deadline_ends_the_call_on_both_sides(connect: Connect, shim: Shim) -> None:
    client = await connect()
    with pytest.raises(errors.DeadlineExceeded):
        await client.call(NAME, "Wait", shim_pb2.WaitRequest(), shim_pb2.WaitResponse, timeout=0.05)
    await asyncio.wait_for(shim.cancelled.wait(), 5)
    assert await create(client, "a", "b") == 1


async def test_a_lost_server_fails_open_calls(connect: Connect, server: Server) -> None:
    client = await connect()
    call = asyncio.ensure_future(
        client.call(NAME, "Wait", shim_pb2.WaitRequest(), shim_pb2.WaitResponse)
    )
    await create(client, "a")
    await server.close()
    with pytest.raises(errors.Unavailable, match="ttrpc: closed"):
        await call
    await asyncio.wait_for(client.wait_closed(), 5)
    with pytest.raises(errors.Unavailable):
        await create(client, "a")


async def test_a_closing_server_takes_no_new_call(connect: Connect, server: Server) -> None:
    client = await connect()
    request = shim_pb2.WaitRequest(id="a")
    waiting = asyncio.ensure_future(client.call(NAME, "Wait", request, shim_pb2.WaitResponse))
    await create(client, "a")  # answered after the one before it has begun
    closing = asyncio.ensure_future(server.close(grace=60))
    await asyncio.sleep(0)
    with pytest.raises(errors.Unavailable, match="the server is closing"):
        await create(client, "b")
    client.close()
    await closing
    with pytest.raises(errors.Unavailable):
        await waiting


async def test_a_lost_client_cancels_its_requests(
    connect: Connect, server: Server, shim: Shim
) -> None:
    client = await connect()
    call = asyncio.ensure_future(
        client.call(NAME, "Wait", shim_pb2.WaitRequest(), shim_pb2.WaitResponse)
    )
    await create(client, "a")
    client.abort()
    with contextlib.suppress(errors.Unavailable):
        await call
    await asyncio.wait_for(shim.cancelled.wait(), 5)
    assert server.connections == 0


async def test_cancelling_a_waiter_on_closed_leaves_it_to_others(connect: Connect) -> None:
    client = await connect()
    waiter = asyncio.ensure_future(client.wait_closed())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert await create(client, "a", "b") == 1
    client.close()
    await asyncio.wait_for(client.wait_closed(), 5)


async def test_oversized_messages_in_both_directions(connect: Connect) -> None:
    client = await connect()
    with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size"):
        await create(client, "a", "b" * MAX_DATA)
    request = shim_pb2.StateRequest(id=str(MAX_DATA))
    with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size"):
        await client.call(NAME, "State", request, shim_pb2.StateResponse, timeout=5)
    request = shim_pb2.StateRequest(id=str(MAX_DATA - 100))
    state = await client.call(NAME, "State", request, shim_pb2.StateResponse, timeout=5)
    assert len(state.bundle) == MAX_DATA - 100


async def test_connecting_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="connecting to"):
        await Client.connect(str(tmp_path / "none"))
    with pytest.raises(errors.Unavailable):
        await Client.connect(str(tmp_path / ("x" * 200)))


async def test_what_a_misbehaving_peer_is_told(server: Server, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    good = ttrpc_pb2.Request(service=NAME, method="Kill").SerializeToString()
    writer.write(
        encode(2, REQUEST, 0, good)
        + encode(1, REQUEST, 0, b"\xff\xff")
        + encode(1, REQUEST, 0, good)
        + encode(9, 3, 0, b"x")
        + encode(9, 66, 0, b"from the future")
        + (MAX_DATA + 1).to_bytes(4, "big")
        + b"\0\0\0\x0b\x01\0"
        + bytes(MAX_DATA + 1)
        + encode(3, REQUEST, 0, good)
    )
    frames = FrameReader()
    told: dict[int, list[tuple[int, str]]] = {}
    count = 0
    while count < 6:
        for frame in frames.feed(await asyncio.wait_for(reader.read(65536), 5)):
            assert frame.type == RESPONSE
            status = ttrpc_pb2.Response.FromString(frame.data).status
            told.setdefault(frame.stream_id, []).append((status.code, status.message[:20]))
            count += 1
    assert told == {
        2: [(3, "StreamID must be odd")],
        1: [(3, "unmarshal request er"), (3, "StreamID cannot be r")],
        9: [(3, "StreamID is no longe")],
        11: [(8, "message length 41943")],
        3: [(0, "")],
    }
    writer.close()
    await writer.wait_closed()


async def test_an_answer_that_does_not_parse(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    client = await Client.from_socket(ours)
    theirs.setblocking(False)
    call = asyncio.ensure_future(create(client, "a"))
    await asyncio.sleep(0)
    theirs.sendall(encode(1, RESPONSE, 0, b"\xff") + encode(77, RESPONSE, 0, b"nobody asked"))
    with pytest.raises(errors.DataLoss, match="malformed"):
        await call
    theirs.close()
    await asyncio.wait_for(client.wait_closed(), 5)


async def test_idle_connections_hold_no_buffers() -> None:
    """What a connection reads into is everybody's; nothing of it is kept between two frames."""
    clients = [Client(str(number)) for number in range(3)]
    buffers = {id(client.get_buffer(-1).obj) for client in clients}
    assert len(buffers) == 1
