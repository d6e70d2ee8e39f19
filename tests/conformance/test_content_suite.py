"""The content suite over gRPC: on a store as a client has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protos.containerd.services.namespaces.v1 import namespaces_pb2
from supervisord.contracts.content import ContentStore
from supervisord.contracts.scope import Scope

from . import sweep
from .content.remote import RemoteStore
from .content.suite import ContentSuite, IsolatedSuite, SharedSuite
from .daemons import KINDS, Daemon
from .wire import Wire


@pytest.fixture
def store(daemon: Daemon) -> Iterator[RemoteStore]:
    made = RemoteStore(daemon.address)
    yield made
    made.close()


def namespace(address: str, name: str, ours: bool, **labels: str) -> Iterator[Scope]:
    """A namespace, emptied and removed at the end."""
    wire = Wire(address, name, ours=ours)
    record = namespaces_pb2.Namespace(name=name, labels=labels)
    wire.namespaces.Create(namespaces_pb2.CreateNamespaceRequest(namespace=record))
    try:
        yield Scope(name)
        sweep.namespace(wire)
    finally:
        wire.close()


@pytest.fixture
def scope(daemon: Daemon, unique: str) -> Iterator[Scope]:
    yield from namespace(daemon.address, f"{unique}-a", daemon.ours)


@pytest.fixture
def other(daemon: Daemon, unique: str) -> Iterator[Scope]:
    yield from namespace(daemon.address, f"{unique}-b", daemon.ours)


@pytest.fixture(scope="module")
def isolated(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon of the same kind with the other policy."""
    started = KINDS[daemon.name]()
    plugin = "sqlite" if daemon.ours else "bolt"
    started.more = (
        f'[plugins."io.containerd.metadata.v1.{plugin}"]\ncontent_sharing_policy = "isolated"\n'
    )
    try:
        started.start()
        yield started
    finally:
        started.close()


class TestOverTheWire(ContentSuite):
    @pytest.fixture(autouse=True)
    def known(self, daemon: Daemon) -> None:
        """What Debian's containerd does otherwise."""
        if not daemon.ours:
            self.algorithms = ("sha256",)  # newer ones keep the others too
            self.forgets_the_bytes = self.abort_frees_the_ref = False


class TestSharedOverTheWire(SharedSuite):
    """Shared is the default of both."""


class TestIsolatedOverTheWire(IsolatedSuite):
    @pytest.fixture
    def store(self, isolated: Daemon) -> Iterator[RemoteStore]:
        made = RemoteStore(isolated.address)
        yield made
        made.close()

    @pytest.fixture
    def scope(self, isolated: Daemon, unique: str) -> Iterator[Scope]:
        yield from namespace(isolated.address, f"{unique}-a", isolated.ours)

    @pytest.fixture
    def other(self, isolated: Daemon, unique: str) -> Iterator[Scope]:
        yield from namespace(isolated.address, f"{unique}-b", isolated.ours)

    @pytest.fixture
    def generous(self, isolated: Daemon, unique: str) -> Iterator[Scope]:
        labels = {"containerd.io/namespace.shareable": "true"}
        yield from namespace(isolated.address, f"{unique}-c", isolated.ours, **labels)

    @pytest.mark.only("supervisord", reason="Debian's containerd is older than the label")
    async def test_a_shareable_namespace_gives(
        self, store: ContentStore, generous: Scope, other: Scope
    ) -> None:
        await super().test_a_shareable_namespace_gives(store, generous, other)
