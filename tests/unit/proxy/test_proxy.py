"""A peer that is not there, dies, hangs or refuses: what the callers of a proxy are told."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from protos.containerd.services.diff.v1 import diff_pb2
from protos.containerd.services.snapshots.v1 import snapshots_pb2
from snapshotters.native import NativeSnapshotter
from snapshotters.serve import SnapshotServer
from supervisord.contracts import errors
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.errors import DeadlineExceeded, InvalidArgument, Unavailable
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info, Mount, Usage
from supervisord.contracts.typed import TypedValue
from supervisord.proxy.channel import Channel, Channels, socket_path
from supervisord.proxy.differ import ProxyDiffer
from supervisord.proxy.snapshotter import ProxySnapshotter
from supervisord.services.call import Call
from supervisord.services.counters import CallCounters
from supervisord.services.listen import GrpcServer, Listen
from supervisord.services.server import bind
from supervisord.services.snapshots import SnapshotsService


@pytest.fixture
def address() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="proxy-")
    yield f"{folder}/s"
    shutil.rmtree(folder)


@pytest.fixture
async def client(address: str) -> AsyncIterator[ProxySnapshotter]:
    opened = ProxySnapshotter(Channel(address), "far", seconds=60.0, own=True)
    yield opened
    await opened.close()


class Peer:
    """A snapshotter whose ``stat`` does what a test wants."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked = asyncio.Event()
        self.hang = False

    async def stat(self, key: str) -> Info:
        self.asked.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return Info(key)


@asynccontextmanager
async def serving(snapshotter: Any, address: str) -> AsyncIterator[None]:
    server = SnapshotServer(snapshotter, address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_a_peer_that_is_not_there_yet(client: ProxySnapshotter, address: str) -> None:
    for _ in range(3):
        with pytest.raises(Unavailable, match=f"proxy plugin at {address}: Stat: "):
            await client.stat("key")
        with pytest.raises(Unavailable, match="List"):
            [info async for info in client.walk()]
    async with serving(Peer(), address):
        assert (await client.stat("key")).name == "key"


async def test_a_peer_that_dies_and_comes_back(client: ProxySnapshotter, address: str) -> None:
    for _ in range(3):
        peer = Peer()
        peer.hang = True
        async with asyncio.TaskGroup() as tasks:
            async with serving(peer, address):
                waiting = tasks.create_task(_refused(client))
                await peer.asked.wait()
            error = await waiting
        assert isinstance(error, Unavailable)
        assert address in str(error)
        with pytest.raises(Unavailable):
            await client.stat("key")
    async with serving(Peer(), address):
        assert (await client.stat("key")).name == "key"


async def _refused(client: ProxySnapshotter) -> BaseException | None:
    try:
        await client.stat("key")
    except errors.Error as error:
        return error
    return None


async def test_a_peer_that_hangs(address: str) -> None:
    peer = Peer()
    peer.hang = True
    client = ProxySnapshotter(Channel(address), "far", seconds=0.2, own=True)
    async with serving(peer, address):
        with pytest.raises(
            DeadlineExceeded, match=r"proxy plugin at .*: Stat: no answer .* 0\.2 s"
        ):
            await client.stat("key")
        peer.hang = False
        assert (await client.stat("key")).name == "key"
    await client.close()


async def test_a_socket_on_which_nobody_speaks(address: str) -> None:
    def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(ignore, address)
    client = ProxySnapshotter(Channel(address), "far", seconds=0.3, own=True)
    with pytest.raises((DeadlineExceeded, Unavailable), match=address):
        await client.stat("key")
    await client.close()
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
async def test_errors_come_back_as_they_were(
    client: ProxySnapshotter, address: str, kind: type[errors.Error]
) -> None:
    peer = Peer()
    peer.failure = kind('snapshot "key": told')
    async with serving(peer, address):
        with pytest.raises(kind, match='snapshot "key": told') as caught:
            await client.stat("key")
    assert type(caught.value) is kind


async def test_a_closed_channel_says_so(address: str) -> None:
    channels = Channels()
    client = ProxySnapshotter(channels.get(f"unix://{address}"), "far")
    assert channels.get(address) is channels.get(f"unix://{address}")
    async with serving(Peer(), address):
        await client.stat("key")
        await channels.close()
        await channels.close()
        with pytest.raises(Unavailable, match="closed"):
            await client.stat("key")


@pytest.mark.parametrize("address", ["", "relative", "tcp://host:1", "unix:/one-slash", "host:1"])
def test_addresses_are_sockets(address: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        socket_path(address)


# Namespaces ---------------------------------------------------------------------------------


class Asked:
    """A service of snapshots that remembers whom it was asked for."""

    def __init__(self) -> None:
        self.namespaces: list[str] = []

    async def stat(self, scope: Scope, key: str) -> Info:
        self.namespaces.append(scope.namespace)
        return Info(key)

    async def usage(self, scope: Scope, key: str) -> Usage:
        self.namespaces.append(scope.namespace)
        return Usage()

    async def commit(
        self, scope: Scope, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        self.namespaces.append(scope.namespace)


@asynccontextmanager
async def bound(descriptor: Any, service: object, address: str) -> AsyncIterator[None]:
    server = GrpcServer(Listen(address), [bind(descriptor, service, CallCounters())])
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_the_peer_is_told_the_namespace_in_the_key(
    client: ProxySnapshotter, address: str
) -> None:
    asked = Asked()
    descriptor = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
    service: Any = SnapshotsService({"far": asked})  # type: ignore[dict-item]
    async with bound(descriptor, service, address):
        await client.stat("one/7/key")
        await client.usage("two/8/sha256:0")
        await client.commit("three/9/name", "three/9/key", {})
        with pytest.raises(errors.FailedPrecondition, match="namespace"):
            await client.stat("key")
    assert asked.namespaces == ["one", "two", "three"]


# Diff ---------------------------------------------------------------------------------------


class DiffPeer:
    """A diff service that remembers its requests, and refuses the second."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.requests: list[Any] = []

    async def apply(self, call: Call, request: diff_pb2.ApplyRequest) -> diff_pb2.ApplyResponse:
        self.scopes.append(call.scope)
        self.requests.append(request)
        if len(self.requests) > 1:
            raise errors.Unimplemented("no such media type")
        answer = diff_pb2.ApplyResponse()
        answer.applied.digest = "sha256:1"
        return answer

    async def diff(self, call: Call, request: diff_pb2.DiffRequest) -> diff_pb2.DiffResponse:
        self.requests.append(request)
        answer = diff_pb2.DiffResponse()
        answer.diff.size = 5
        return answer


async def test_a_differ_is_told_everything(address: str) -> None:
    peer = DiffPeer()
    channel = Channel(address)
    differ = ProxyDiffer(channel, seconds=5)
    mounts = [Mount("bind", "/x", ("ro",))]
    layer = Descriptor("text/plain", "sha256:0", 3, {"a": "b"})
    scope = Scope("ns", "lease")
    options = ApplyOptions({"id": TypedValue("type", b"v")}, sync_fs=True)
    async with bound(diff_pb2.DESCRIPTOR.services_by_name["Diff"], peer, address):
        assert (await differ.apply(scope, layer, mounts, options)).digest == "sha256:1"
        with pytest.raises(errors.Unimplemented):
            await differ.apply(scope, layer, mounts, ApplyOptions())
        wanted = DiffOptions("application/x", "ref", {"l": "1"}, 7)
        assert (await differ.diff(scope, mounts, mounts, wanted)).size == 5
    await channel.close()
    applied, _, made = peer.requests
    assert peer.scopes[0] == scope
    assert (applied.diff.media_type, applied.diff.annotations["a"]) == ("text/plain", "b")
    assert (applied.payloads["id"].value, applied.sync_fs) == (b"v", True)
    assert [mount.source for mount in applied.mounts] == ["/x"]
    assert (made.media_type, made.ref, made.labels["l"]) == ("application/x", "ref", "1")
    assert made.source_date_epoch.seconds == 7


# The server ---------------------------------------------------------------------------------


async def test_a_list_of_many_comes_in_batches(
    client: ProxySnapshotter, address: str, tmp_path: Path
) -> None:
    native = await NativeSnapshotter.open(tmp_path / "root")
    async with serving(native, address):
        names = {f"key-{number}" for number in range(120)}
        await asyncio.gather(*(client.view(name, "", {}) for name in names))
        found = [info.name async for info in client.walk()]
        assert sorted(found) == sorted(names)
        async for _ in client.walk():
            break  # a list that is given up leaves nothing
    await native.close()
