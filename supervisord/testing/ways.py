"""The ways in which a snapshotter is used: alone, below the metadata layer, behind a socket.

Each is a context manager that makes another snapshotter of one, whose rules must be the same.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from protos.containerd.services.snapshots.v1 import snapshots_pb2
from snapshotters.serve import SnapshotServer
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info, Mount, SnapshotService, Snapshotter, Usage
from supervisord.metadata.store import Metadata
from supervisord.proxy.channel import Channel
from supervisord.proxy.snapshotter import ProxySnapshotter
from supervisord.services.counters import CallCounters
from supervisord.services.listen import GrpcServer, Listen
from supervisord.services.server import bind
from supervisord.services.snapshots import SnapshotsService

NAME = "suite"
SECONDS = 60.0

Way = Callable[[Snapshotter, Path], AbstractAsyncContextManager[Snapshotter]]


class Scoped:
    """The snapshots of one namespace as a snapshotter; closed with all below it."""

    def __init__(self, snapshots: SnapshotService, namespace: str, below: AsyncExitStack) -> None:
        self._snapshots = snapshots
        self._scope = Scope(namespace)
        self._below = below

    async def stat(self, key: str) -> Info:
        return await self._snapshots.stat(self._scope, key)

    async def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        return await self._snapshots.update(self._scope, info, fieldpaths)

    async def usage(self, key: str) -> Usage:
        return await self._snapshots.usage(self._scope, key)

    async def mounts(self, key: str) -> Sequence[Mount]:
        return await self._snapshots.mounts(self._scope, key)

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return await self._snapshots.prepare(self._scope, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return await self._snapshots.view(self._scope, key, parent, labels)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        await self._snapshots.commit(self._scope, name, key, labels, parent)

    async def remove(self, key: str) -> None:
        await self._snapshots.remove(self._scope, key)

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        return self._snapshots.walk(self._scope, filters)

    async def cleanup(self) -> None:
        await self._snapshots.cleanup(self._scope)

    async def close(self) -> None:
        await self._below.aclose()


@asynccontextmanager
async def direct(backend: Snapshotter, folder: Path) -> AsyncIterator[Snapshotter]:
    """As it is."""
    yield backend


@asynccontextmanager
async def metadata(backend: Snapshotter, folder: Path) -> AsyncIterator[Snapshotter]:
    """With namespaces, labels and collection above it, in this process."""
    async with AsyncExitStack() as stack:
        yield Scoped(await _metadata(backend, folder, stack), NAME, stack)


@asynccontextmanager
async def proxy(backend: Snapshotter, folder: Path) -> AsyncIterator[Snapshotter]:
    """As a proxy plugin: ``snapshotters.serve`` behind a socket."""
    async with AsyncExitStack() as stack:
        yield await _served(backend, stack)


@asynccontextmanager
async def daemon(backend: Snapshotter, folder: Path) -> AsyncIterator[Snapshotter]:
    """As the proxy plugin of a daemon, whose own service is what the tests speak to."""
    async with AsyncExitStack() as stack:
        snapshots = await _metadata(await _served(backend, stack), folder, stack)
        descriptor = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
        service = bind(descriptor, SnapshotsService({NAME: snapshots}), CallCounters())
        address = _socket(stack)
        server = GrpcServer(Listen(address), [service])
        await server.start()
        stack.push_async_callback(server.stop, 0)
        yield await _client(address, stack)


WAYS: Mapping[str, Way] = {
    "direct": direct,
    "metadata": metadata,
    "proxy": proxy,
    "daemon": daemon,
}
"""By the name that a suite's ``ways`` give."""


async def _metadata(backend: Snapshotter, folder: Path, stack: AsyncExitStack) -> SnapshotService:
    store = await Metadata.open(
        folder / "metadata", snapshotters={NAME: backend}, content_path=folder / "content"
    )
    stack.push_async_callback(store.close)
    return store.snapshots[NAME]


async def _served(backend: Snapshotter, stack: AsyncExitStack) -> ProxySnapshotter:
    address = _socket(stack)
    server = SnapshotServer(backend, address)
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return await _client(address, stack)


async def _client(address: str, stack: AsyncExitStack) -> ProxySnapshotter:
    client = ProxySnapshotter(Channel(address), NAME, seconds=SECONDS, namespace=NAME, own=True)
    stack.push_async_callback(client.close)
    return client


def _socket(stack: AsyncExitStack) -> str:
    """A path that is short enough, whatever the test's own folder is."""
    folder = tempfile.mkdtemp(prefix="suite-")
    stack.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
    return f"{folder}/s"
