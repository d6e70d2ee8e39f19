"""The content suite in process: files below, rows above."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord.contracts.content import ContentStore
from supervisord.contracts.namespaces import Namespace
from supervisord.contracts.scope import Scope
from supervisord.metadata.store import Metadata
from tests.conformance.content.suite import ContentSuite, IsolatedSuite, SharedSuite

from .conftest import MemorySnapshotter, Recorder, opened


@pytest.fixture
def store(metadata: Metadata) -> ContentStore:
    return metadata.content


@pytest.fixture
def scope() -> Scope:
    return Scope("one")


@pytest.fixture
def other() -> Scope:
    return Scope("two")


@pytest.mark.blocks("it makes and hashes the bytes of the blobs")
class TestInProcess(ContentSuite):
    """Blobs in one store."""


class TestShared(SharedSuite):
    """Under the policy that is the default."""


class TestIsolated(IsolatedSuite):
    @pytest.fixture
    async def isolated(
        self, tmp_path: Path, events: Recorder, backend: MemorySnapshotter
    ) -> AsyncIterator[Metadata]:
        stores = await opened(tmp_path, events, backend, isolated=True)
        yield stores
        await stores.close()

    @pytest.fixture
    def store(self, isolated: Metadata) -> ContentStore:
        return isolated.content

    @pytest.fixture
    async def generous(self, isolated: Metadata) -> Scope:
        made = Namespace("giver", {"containerd.io/namespace.shareable": "true"})
        await isolated.namespaces.create(replace(made))
        return Scope("giver")
