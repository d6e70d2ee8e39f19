"""A Differ over a real content store, real snapshotters and real workers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.message import Message

from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.content import Info
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.events import Envelope
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount, Snapshotter
from supervisord.contracts.typed import TypedValue
from supervisord.diff import Differ
from supervisord.metadata.store import Metadata
from supervisord.testing.mounting import mounted
from supervisord.testing.trees import Change
from tests.unit.unpack.forks import Forks

SCOPE = Scope("test")


class Silent:
    """A publisher that nobody listens to."""

    def publish(self, namespace: str, topic: str, event: Message | TypedValue) -> None:
        assert namespace == SCOPE.namespace

    def forward(self, envelope: Envelope) -> None:
        raise AssertionError(envelope)


@dataclass
class House:
    """What the tests work with."""

    differ: Differ
    stores: Metadata
    snapshotter: Snapshotter
    tmp_path: Path

    async def blob(self, data: bytes, media_type: str) -> Descriptor:
        """A new blob."""
        writer = await self.stores.content.writer(SCOPE, hashlib.sha256(data).hexdigest())
        await writer.write(data)
        info = await writer.commit(len(data), "", {})
        await writer.close()
        return Descriptor(media_type, info.digest, info.size)

    async def apply(
        self,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        **payloads: TypedValue,
    ) -> Descriptor:
        options = ApplyOptions(payloads, sync_fs=sync)
        return await self.differ.apply(SCOPE, descriptor, mounts, options)

    async def diff(
        self, lower: Sequence[Mount], upper: Sequence[Mount], **options: object
    ) -> Descriptor:
        return await self.differ.diff(SCOPE, lower, upper, DiffOptions(**options))  # type: ignore[arg-type]

    async def info(self, descriptor: Descriptor) -> Info:
        return await self.stores.content.info(SCOPE, descriptor.digest)

    async def read(self, descriptor: Descriptor) -> bytes:
        return await self.stores.content.read_blob(SCOPE, descriptor.digest, 1 << 30)

    async def layer(self, name: str, parent: str, change: Change) -> None:
        """Commits a changed snapshot."""
        mounts = await self.snapshotter.prepare(f"{name}-key", parent, {})
        with mounted(mounts, self.tmp_path / "mnt") as root:
            change(root)
        await self.snapshotter.commit(name, f"{name}-key", {})


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    opened = Forks()
    yield opened
    opened.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Metadata]:
    backends: Mapping[str, Snapshotter] = {}
    opened = await Metadata.open(
        tmp_path / "metadata",
        snapshotters=backends,
        content_path=tmp_path / "content",
        publisher=Silent(),
        policy="shared",
    )
    yield opened
    await opened.close()


@pytest.fixture(params=["overlayfs", "native"])
async def house(
    request: pytest.FixtureRequest, stores: Metadata, forks: Forks, tmp_path: Path
) -> AsyncIterator[House]:
    snapshotter: Snapshotter
    if request.param == "overlayfs":
        snapshotter = await OverlaySnapshotter.open(tmp_path / "snapshots")
    else:
        snapshotter = await NativeSnapshotter.open(tmp_path / "snapshots")
    differ = Differ(stores.content, forks, tmp_path / "state")
    yield House(differ, stores, snapshotter, tmp_path)
    await snapshotter.close()
