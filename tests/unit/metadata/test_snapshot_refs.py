"""Snapshots that a snapshotter has already: offered under a target, and shared by namespaces.

The rules are those of containerd's metadata for ``containerd.io/snapshot.ref``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.leases import Lease
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Kind, Mount
from supervisord.metadata.snapshots import Snapshots
from supervisord.metadata.store import Metadata

from .conftest import MemorySnapshotter, Recorder, opened

REF = "containerd.io/snapshot.ref"
ROOT = {"containerd.io/gc.root": "1"}
ONE, TWO, THREE = Scope("one"), Scope("two"), Scope("three")


class Sharing(MemorySnapshotter):
    """Offers what was committed with a target to whoever prepares it on the same parent."""

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        target = labels.get(REF, "")
        for info in self.snapshots.values():
            same = info.labels.get(REF) == target and info.parent == parent
            if target and same and info.kind is Kind.COMMITTED:
                raise AlreadyExists("found the target")
        return await super().prepare(key, parent, labels)


@pytest.fixture
def backend() -> Sharing:
    return Sharing()


@pytest.fixture
async def stores(tmp_path: Path, events: Recorder, backend: Sharing) -> AsyncIterator[Metadata]:
    stores = await opened(tmp_path, events, backend)
    yield stores
    await stores.close()


@pytest.fixture
def store(stores: Metadata) -> Snapshots:
    return stores.snapshots["memory"]


def labelled(target: str) -> dict[str, str]:
    return {**ROOT, REF: target}


async def leased(stores: Metadata, scope: Scope) -> Scope:
    """The scope with a new lease."""
    await stores.leases.create(scope.namespace, Lease("L"))
    return Scope(scope.namespace, "L")


def held(stores: Metadata, scope: Scope) -> set[str]:
    return {r.id for r in stores.leases.list_resources(scope.namespace, "L")}


async def test_a_target_is_found_in_other_namespaces(stores: Metadata, store: Snapshots) -> None:
    one = await leased(stores, ONE)
    await store.prepare(one, "tmp", "", labelled("base"))
    assert held(stores, one) == {"tmp"}
    await store.commit(one, "base", "tmp", labelled("base"))
    assert held(stores, one) == {"base"}
    with pytest.raises(AlreadyExists, match='target snapshot "base"'):
        await store.prepare(TWO, "tmp", "", labelled("base"))
    info = await store.stat(TWO, "base")
    assert (info.kind, info.labels[REF]) == (Kind.COMMITTED, "base")
    with pytest.raises(NotFound):
        await store.stat(TWO, "tmp")

    await store.prepare(TWO, "tmp", "base", labelled("top"))
    await store.prepare(one, "tmp", "base", labelled("top"))  # it is not committed in the other
    assert held(stores, one) == {"base", "tmp"}
    await store.commit(TWO, "top", "tmp", labelled("top"))
    await store.commit(one, "top", "tmp", labelled("top"))  # both prepared it, both may commit


async def test_a_lease_holds_what_is_found(stores: Metadata, store: Snapshots) -> None:
    await store.prepare(ONE, "tmp", "", labelled("base"))
    await store.commit(ONE, "base", "tmp", labelled("base"))
    two = await leased(stores, TWO)
    for _ in range(2):  # from the snapshotter, then from the namespace itself
        with pytest.raises(AlreadyExists):
            await store.prepare(two, "tmp", "", labelled("base"))
        assert held(stores, two) == {"base"}
        await stores.leases.delete(TWO.namespace, "L")
        await stores.leases.create(TWO.namespace, Lease("L"))


async def test_in_its_namespace_a_target_is_found_on_any_parent(store: Snapshots) -> None:
    for name, parent in (("base", ""), ("top", "base")):
        await store.prepare(ONE, "tmp", parent, labelled(name))
        await store.commit(ONE, name, "tmp", labelled(name))
    with pytest.raises(AlreadyExists):
        await store.prepare(ONE, "again", "", labelled("top"))
    await store.prepare(THREE, "tmp", "", labelled("top"))  # elsewhere only on the same one
    await store.remove(THREE, "tmp")
    with pytest.raises(NotFound, match="parent snapshot base"):
        await store.prepare(THREE, "tmp", "base", labelled("top"))
    for name, parent in (("base", ""), ("top", "base")):
        with pytest.raises(AlreadyExists):
            await store.prepare(THREE, "tmp", parent, labelled(name))
    assert (await store.stat(THREE, "top")).parent == "base"


async def test_what_another_namespace_has_is_not_removed(
    stores: Metadata, store: Snapshots, backend: Sharing
) -> None:
    await store.prepare(ONE, "tmp", "", labelled("base"))
    await store.commit(ONE, "base", "tmp", labelled("base"))
    with pytest.raises(AlreadyExists):
        await store.prepare(TWO, "tmp", "", labelled("base"))
    await store.remove(ONE, "base")
    await store.cleanup(ONE)
    assert (await store.stat(TWO, "base")).kind is Kind.COMMITTED
    await store.prepare(TWO, "child", "base", ROOT)
    await store.remove(TWO, "child")
    await store.remove(TWO, "base")
    await store.cleanup(TWO)
    assert backend.snapshots == {}


async def test_what_was_begun_for_a_target_is_taken_back(
    stores: Metadata, store: Snapshots, backend: Sharing
) -> None:
    """As stargz does it: what it mounted under the key stays when the target is there already."""

    class Leaving(Sharing):
        async def prepare(
            self, key: str, parent: str, labels: Mapping[str, str]
        ) -> Sequence[Mount]:
            mounts = await MemorySnapshotter.prepare(self, key, parent, labels)
            for info in self.snapshots.values():
                if info.kind is Kind.COMMITTED and info.labels.get(REF) == labels.get(REF):
                    raise AlreadyExists("found the target")
            return mounts

    store._backend = leaving = Leaving()
    await store.prepare(ONE, "tmp", "", labelled("base"))
    await store.commit(ONE, "base", "tmp", labelled("base"))
    with pytest.raises(AlreadyExists):
        await store.prepare(TWO, "tmp", "", labelled("base"))
    assert [info.kind for info in leaving.snapshots.values()] == [Kind.COMMITTED]


async def test_a_target_that_the_snapshotter_has_not_after_all(
    store: Snapshots, backend: Sharing
) -> None:
    class Lying(Sharing):
        async def prepare(
            self, key: str, parent: str, labels: Mapping[str, str]
        ) -> Sequence[Mount]:
            raise AlreadyExists("trust me")

    store._backend = Lying()
    with pytest.raises(NotFound, match='target snapshot "base" in backend'):
        await store.prepare(ONE, "tmp", "", labelled("base"))


@pytest.mark.parametrize("target", ['a "b" c', "a,b==c", "back\\slash", "ünï\ncode", "x" * 4000])
async def test_targets_are_free_text(store: Snapshots, target: str) -> None:
    await store.prepare(ONE, "tmp", "", labelled(target))
    await store.commit(ONE, target, "tmp", labelled(target))
    with pytest.raises(AlreadyExists):
        await store.prepare(TWO, "tmp", "", labelled(target))
    assert (await store.stat(TWO, target)).kind is Kind.COMMITTED


async def test_keys_are_bounded(store: Snapshots) -> None:
    await store.prepare(ONE, "k" * 32768, "", ROOT)
    for key in ("k" * 32769, "", "a\0b"):
        with pytest.raises(InvalidArgument, match="key"):
            await store.prepare(ONE, key, "", ROOT)
