"""Handlers, scope, errors and counters, over a real socket with a real client."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.containerd.services.containers.v1 import containers_pb2
from protos.containerd.services.content.v1 import content_pb2
from supervisord.contracts import errors
from supervisord.services.call import Call
from supervisord.services.counters import CallCounters, MethodCounters
from supervisord.services.listen import GrpcServer, Listen
from supervisord.services.server import STATUS, bind, method_name
from supervisord.services.wire import record

CONTAINERS = containers_pb2.DESCRIPTOR.services_by_name["Containers"]
CONTENT = content_pb2.DESCRIPTOR.services_by_name["Content"]
NAMESPACE = (("containerd-namespace", "tests"), ("containerd-lease", "held"))


class FakeContainers:
    """Every outcome that a method can have, chosen by the id asked for."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.cancelled = asyncio.Event()
        self.words = ""

    async def get(self, call: Call, request: containers_pb2.GetContainerRequest) -> Any:
        if request.id == "scope":
            self.scopes.append(call.scope)
        elif request.id == "bytes":
            return record(1, containers_pb2.Container(id="from bytes").SerializeToString())
        elif request.id == "defect":
            raise KeyError("oops")
        elif request.id == "late":
            raise TimeoutError
        elif request.id == "hang":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        elif request.id.isdigit():
            raise errors.from_code(int(request.id), f"told {request.id} {self.words}".strip())
        return containers_pb2.GetContainerResponse(
            container=containers_pb2.Container(id=request.id)
        )

    async def delete(self, call: Call, request: Any) -> None:
        return None

    async def list_stream(self, call: Call, request: Any) -> AsyncIterator[Any]:
        for name in request.filters:
            if name == "break":
                raise errors.NotFound("no more")
            yield containers_pb2.ListContainerMessage(container=containers_pb2.Container(id=name))


class Echo:
    """Content.Write as an echo of refs, and a Read whose range says what happens."""

    async def read(self, call: Call, request: content_pb2.ReadContentRequest) -> bytes | None:
        for number in range(request.offset):
            await call.send(content_pb2.ReadContentResponse(offset=number).SerializeToString())
        if request.size:
            raise errors.NotFound("no more")
        if not request.offset:
            return None
        return content_pb2.ReadContentResponse(data=b"last").SerializeToString()

    async def write(self, call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield content_pb2.WriteContentResponse(digest=request.ref)


class Peer:
    """A running server and a client of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.counters = CallCounters()
        self.containers = FakeContainers()
        handlers = [
            bind(CONTAINERS, self.containers, self.counters),
            bind(CONTENT, Echo(), self.counters),
        ]
        self.server = GrpcServer(Listen(path), handlers)
        self.channel = grpc.aio.insecure_channel(f"unix:{path}")

    def unary(self, name: str, request: Any, metadata: Any = (), **options: Any) -> Any:
        path = f"/{CONTAINERS.full_name}/{name}"
        parse = containers_pb2.GetContainerResponse.FromString
        call = self.channel.unary_unary(path, type(request).SerializeToString, parse)
        return call(request, metadata=metadata, **options)

    def get(self, id: str, metadata: Any = (), **options: Any) -> Any:
        return self.unary("Get", containers_pb2.GetContainerRequest(id=id), metadata, **options)

    def stats(self, method: str) -> MethodCounters:
        [found] = [entry for entry in self.counters.methods if entry.method == method]
        return found


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer(str(Path(tempfile.mkdtemp()) / "s.sock"))
    await peer.server.start()
    yield peer
    await peer.channel.close()
    await peer.server.stop(0)


def test_method_names() -> None:
    assert [method_name(n) for n in ("CloseIO", "ListPids", "Get", "ResizePty")] == [
        "close_io",
        "list_pids",
        "get",
        "resize_pty",
    ]


def test_an_object_that_serves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="object serves no method of containerd"):
        bind(CONTAINERS, object(), CallCounters())


async def test_messages_and_bytes_are_replies(peer: Peer) -> None:
    assert (await peer.get("x")).container.id == "x"
    assert (await peer.get("bytes")).container.id == "from bytes"
    deleted = await peer.unary("Delete", containers_pb2.DeleteContainerRequest(id="x"))
    assert not deleted.HasField("container")


async def test_a_stream_whose_last_message_leaves_with_the_status(peer: Peer) -> None:
    read = peer.channel.unary_stream(
        f"/{CONTENT.full_name}/Read",
        content_pb2.ReadContentRequest.SerializeToString,
        content_pb2.ReadContentResponse.FromString,
    )
    for count in (0, 1, 3):
        call = read(content_pb2.ReadContentRequest(offset=count))
        got = [(answer.offset, answer.data) async for answer in call]
        last = (0, b"last") if count else (0, b"")
        assert got == [*((number, b"") for number in range(count)), last]
        assert await call.code() is grpc.StatusCode.OK
    call = read(content_pb2.ReadContentRequest(offset=2, size=1))
    offsets = []
    with pytest.raises(grpc.aio.AioRpcError, match="no more"):
        async for answer in call:
            offsets.append(answer.offset)
    assert offsets == [0, 1]
    assert await call.code() is grpc.StatusCode.NOT_FOUND
    stats = peer.stats("Read")
    assert (stats.started, stats.received, stats.sent) == (4, 4, 1 + 2 + 4 + 2)
    assert stats.kind == "server_stream"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
async def test_a_long_message_is_cut_to_what_a_client_takes(peer: Peer, letter: str) -> None:
    peer.containers.words = letter * 100_000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await peer.get("5")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    details = caught.value.details() or ""
    assert details.startswith("told 5 " + letter * 500)
    assert details.endswith(letter + "...")


async def test_the_scope_comes_from_metadata(peer: Peer) -> None:
    await peer.get("scope", NAMESPACE)
    [scope] = peer.containers.scopes
    assert (scope.namespace, scope.lease) == ("tests", "held")


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        ((), grpc.StatusCode.FAILED_PRECONDITION, "namespace is required"),
        (
            (("containerd-namespace", ""),),
            grpc.StatusCode.FAILED_PRECONDITION,
            "namespace is required",
        ),
        (
            (("containerd-namespace", "a/b"),),
            grpc.StatusCode.INVALID_ARGUMENT,
            "namespace: identifier 'a/b'",
        ),
        (
            (("containerd-namespace", "n" * 77),),
            grpc.StatusCode.INVALID_ARGUMENT,
            "longer than 76",
        ),
    ],
)
async def test_a_missing_or_malformed_namespace_is_refused(
    peer: Peer, metadata: Any, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.get("scope", metadata)
    assert refused.value.code() == code
    assert words in (refused.value.details() or "")


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
async def test_every_domain_error_has_its_status(peer: Peer, code: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.get(str(code))
    assert refused.value.code() is STATUS[code]
    assert refused.value.details() == f"told {code}"
    assert peer.stats("Get").handled == {code: 1}


async def test_a_defect_is_internal_and_logged(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.get("defect")
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert refused.value.details() == "internal error: KeyError: 'oops'"
    assert "call failed" in caplog.text


async def test_a_timeout_is_a_deadline_that_passed(peer: Peer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.get("late")
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_client_that_leaves_cancels_the_method(peer: Peer) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await peer.get("hang", timeout=0.2)
    await asyncio.wait_for(peer.containers.cancelled.wait(), 2)
    await asyncio.sleep(0)
    assert peer.stats("Get").handled == {1: 1}


async def test_an_rpc_without_a_method_is_unimplemented(peer: Peer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await peer.unary("Create", containers_pb2.CreateContainerRequest())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stream_out_counts_its_messages_and_translates_its_error(peer: Peer) -> None:
    call = peer.channel.unary_stream(
        f"/{CONTAINERS.full_name}/ListStream",
        containers_pb2.ListContainersRequest.SerializeToString,
        containers_pb2.ListContainerMessage.FromString,
    )(containers_pb2.ListContainersRequest(filters=["a", "b", "break"]))
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for message in call:
            seen.append(message.container.id)
    assert seen == ["a", "b"]
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    stats = peer.stats("ListStream")
    assert (stats.kind, stats.started, stats.received, stats.sent) == ("server_stream", 1, 1, 2)


async def test_a_stream_both_ways_counts_both(peer: Peer) -> None:
    call = peer.channel.stream_stream(
        f"/{CONTENT.full_name}/Write",
        content_pb2.WriteContentRequest.SerializeToString,
        content_pb2.WriteContentResponse.FromString,
    )()
    for ref in ("one", "two", "three"):
        await call.write(content_pb2.WriteContentRequest(ref=ref))
        reply: Any = await call.read()
        assert reply.digest == ref
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    await asyncio.sleep(0)
    stats = peer.stats("Write")
    assert (stats.kind, stats.received, stats.sent, stats.handled) == ("bidi_stream", 3, 3, {0: 1})


@pytest.mark.parametrize(
    ("service", "rpc"),
    [(CONTAINERS, "Get"), (CONTAINERS, "ListStream"), (CONTENT, "Write")],
)
async def test_what_is_no_message_is_the_clients_mistake(
    peer: Peer, caplog: pytest.LogCaptureFixture, service: Any, rpc: str
) -> None:
    path = f"/{service.full_name}/{rpc}"
    channel: Any = peer.channel
    if rpc == "Get":
        call = channel.unary_unary(path)(b"\xff\xff")
    elif rpc == "ListStream":
        call = channel.unary_stream(path)(b"\xff\xff")
    else:
        call = channel.stream_stream(path)(iter([b"\xff\xff"]))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    kind = service.methods_by_name[rpc].input_type.full_name
    assert await call.details() == f"the request is no {kind}"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_the_socket_has_its_mode_and_is_removed(peer: Peer) -> None:
    found = os.stat(peer.path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    await peer.server.stop(0)
    assert not os.path.exists(peer.path)


def test_a_duration_lands_in_its_bucket() -> None:
    stats = MethodCounters("s", "m", "unary")
    stats.finished(0, 0.005)
    stats.finished(5, 0.0051)
    stats.finished(5, 99)
    assert stats.buckets[:2] == [1, 1]
    assert stats.buckets[-1] == 1
    assert stats.handled == {0: 1, 5: 2}
