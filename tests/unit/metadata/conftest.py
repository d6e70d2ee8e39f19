"""Stores over a real database, with a snapshotter that keeps its snapshots in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from google.protobuf.message import Message

from supervisord.contracts.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
)
from supervisord.contracts.events import Envelope
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Info, Kind, Mount, Usage
from supervisord.contracts.typed import TypedValue
from supervisord.gc.policy import Thresholds
from supervisord.gc.scheduler import Scheduler
from supervisord.metadata.store import Metadata

SCOPE = Scope("test")


class Recorder:
    """A publisher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, Message | TypedValue]] = []

    def publish(self, namespace: str, topic: str, event: Message | TypedValue) -> None:
        self.events.append((namespace, topic, event))

    def forward(self, envelope: Envelope) -> None:
        raise AssertionError(envelope)

    def topics(self) -> list[str]:
        return [topic for _, topic, _ in self.events]


class MemorySnapshotter:
    """The contract over a dictionary, strict about parents and children."""

    def __init__(self) -> None:
        self.snapshots: dict[str, Info] = {}
        self.offers: dict[str, str] = {}
        self.cleanups = 0

    async def stat(self, key: str) -> Info:
        if key not in self.snapshots:
            raise NotFound(f"snapshot {key}: not found")
        return self.snapshots[key]

    async def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        old = await self.stat(info.name)
        self.snapshots[info.name] = Info(
            old.name, old.parent, old.kind, old.created_at, old.updated_at, dict(info.labels)
        )
        return self.snapshots[info.name]

    async def usage(self, key: str) -> Usage:
        await self.stat(key)
        return Usage(4096, 1)

    async def mounts(self, key: str) -> Sequence[Mount]:
        info = await self.stat(key)
        if info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key} is committed")
        return [Mount("bind", f"/snapshots/{key}")]

    async def _make(
        self, key: str, parent: str, labels: Mapping[str, str], kind: Kind
    ) -> Sequence[Mount]:
        target = labels.get("containerd.io/snapshot.ref", "")
        if target in self.offers:
            name = self.offers[target]
            self.snapshots[name] = Info(name, parent, Kind.COMMITTED, 5, 5, dict(labels))
            raise AlreadyExists(f"target {target}: already exists")
        if key in self.snapshots:
            raise AlreadyExists(f"snapshot {key}: already exists")
        if parent and (await self.stat(parent)).kind is not Kind.COMMITTED:
            raise FailedPrecondition(f"parent {parent} is not committed")
        self.snapshots[key] = Info(key, parent, kind, 1, 1, dict(labels))
        return await self.mounts(key)

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return await self._make(key, parent, labels, Kind.ACTIVE)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        return await self._make(key, parent, labels, Kind.VIEW)

    async def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str = ""
    ) -> None:
        info = await self.stat(key)
        if info.kind is not Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        if name in self.snapshots:
            raise AlreadyExists(f"snapshot {name}: already exists")
        del self.snapshots[key]
        self.snapshots[name] = Info(name, info.parent or parent, Kind.COMMITTED, 2, 2, dict(labels))

    async def remove(self, key: str) -> None:
        await self.stat(key)
        if any(info.parent == key for info in self.snapshots.values()):
            raise FailedPrecondition(f"snapshot {key} has children")
        del self.snapshots[key]

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        for info in list(self.snapshots.values()):
            yield info

    async def cleanup(self) -> None:
        self.cleanups += 1

    async def close(self) -> None:
        self.snapshots.clear()


@pytest.fixture
def events() -> Recorder:
    return Recorder()


@pytest.fixture
def backend() -> MemorySnapshotter:
    return MemorySnapshotter()


async def opened(
    path: Path, events: Recorder, backend: MemorySnapshotter, *, isolated: bool = False
) -> Metadata:
    """The stores below ``path``, as the daemon opens them."""
    return await Metadata.open(
        path / "metadata",
        snapshotters={"memory": backend},
        content_path=path / "content",
        publisher=events,
        policy="isolated" if isolated else "shared",
    )


@pytest.fixture
async def metadata(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter
) -> AsyncIterator[Metadata]:
    """Stores with a collector that collects only when it is asked to."""
    stores = await opened(tmp_path, events, backend)
    never = Thresholds(
        deletion_threshold=1 << 30, mutation_threshold=0, startup_delay=0, pause_threshold=0.00001
    )
    collector = Scheduler(stores.garbage, never)
    stores.attach(collector)
    collector.start()
    yield stores
    await collector.close()
    await stores.close()


async def add_blob(
    stores: Metadata,
    data: bytes,
    labels: Mapping[str, str] | None = None,
    scope: Scope = SCOPE,
    ref: str = "",
) -> str:
    """The digest of a new blob."""
    writer = await stores.content.writer(scope, ref or f"ref-{hash(data)}")
    try:
        await writer.write(data)
        info = await writer.commit(len(data), "", labels or {})
    finally:
        await writer.close()
    return info.digest
