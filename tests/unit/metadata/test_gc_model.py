"""Random clients against the model in ``gc_model``, and clients that run beside collections."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisord.contracts.containers import Container, Runtime
from supervisord.contracts.content import Info
from supervisord.contracts.errors import AlreadyExists, Error
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.leases import Lease, Resource
from supervisord.contracts.sandboxes import Sandbox
from supervisord.contracts.scope import Scope
from supervisord.contracts.typed import TypedValue
from supervisord.metadata.marking import Found, is_still
from supervisord.metadata.store import Metadata

from .conftest import MemorySnapshotter, Recorder, add_blob, opened
from .gc_model import FUTURE, PAST, PREFIX, Labels, Namespace, Thing

NAMESPACES = ("one", "two")
BLOBS = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in (b"0", b"1", b"2", b"3")}
KEYS = ("s0", "s1", "s2")
COMMITTED = ("c0", "c1", "c2")
IMAGES, CONTAINERS, SANDBOXES = ("i0", "i1"), ("web", "db"), ("pod",)
LEASES, REFS = ("l0", "l1"), ("r0", "r1")
_TYPES = {"content": "content", "snapshot": "snapshots/memory", "image": "images",
          "ingest": "ingests"}  # fmt: skip

# What is drawn ------------------------------------------------------------------------------

blobs, snapshots = st.sampled_from(list(BLOBS)), st.sampled_from([*KEYS, *COMMITTED])
images, leases = st.sampled_from(IMAGES), st.sampled_from(LEASES)
maybe_lease = st.sampled_from(["", "", *LEASES])
label = st.one_of(
    st.tuples(st.sampled_from(["ref.content", "ref.content.x", "bref.content/y"]), blobs),
    st.tuples(st.sampled_from(["ref.snapshot.memory", "bref.snapshot.memory/x"]), snapshots),
    st.tuples(st.sampled_from(["ref.image", "bref.image.x"]), images),
    st.tuples(st.just("bref.container"), st.sampled_from(CONTAINERS)),
    st.tuples(st.just("cond.snapshot.memory"), snapshots.map(lambda key: f"usedat<1h|{key}")),
    st.tuples(st.just("cond.value-usedat"), st.sampled_from([PAST, FUTURE])),
    st.tuples(st.just("root"), st.just("yes")),
)
labels = st.lists(label, min_size=1, max_size=3).map(
    lambda pairs: {PREFIX + name: value for name, value in pairs}
)
expiring = st.tuples(labels, st.sampled_from([None, PAST, FUTURE])).map(
    lambda both: {**both[0], **({PREFIX + "expire": both[1]} if both[1] else {})}
)
of_lease = st.sampled_from([{}, {PREFIX + "flat": "1"}, {PREFIX + "expire": PAST}])
resource = st.one_of(
    st.tuples(st.just("content"), blobs),
    st.tuples(st.just("snapshot"), snapshots),
    st.tuples(st.just("image"), images),
    st.tuples(st.just("ingest"), st.sampled_from(REFS)),
)
write = st.tuples(st.just("write"), blobs, labels, maybe_lease)
prepare = st.tuples(
    st.just("prepare"),
    st.sampled_from(KEYS),
    st.sampled_from(["", *COMMITTED]),
    labels,
    maybe_lease,
)
making = st.one_of(
    write,
    write,
    prepare,
    prepare,
    st.tuples(st.just("create_lease"), leases, of_lease),
    st.tuples(st.just("hold"), leases, resource),
    st.tuples(st.just("hold"), leases, resource),
    st.tuples(st.just("commit"), st.sampled_from(COMMITTED), st.sampled_from(KEYS), labels,
              maybe_lease),
    st.tuples(st.just("create_image"), images, blobs, expiring, maybe_lease),
    st.tuples(st.just("create_container"), st.sampled_from(CONTAINERS), snapshots, labels),
    st.tuples(st.just("create_sandbox"), st.sampled_from(SANDBOXES), labels),
    st.tuples(st.just("ingest"), st.sampled_from(REFS), maybe_lease),
)  # fmt: skip
taking = st.one_of(
    st.tuples(st.just("delete_lease"), leases),
    st.tuples(st.just("release"), leases, resource),
    st.tuples(st.just("label"), blobs, labels),
    st.tuples(st.just("delete_blob"), blobs, maybe_lease),
    st.tuples(st.just("remove"), snapshots, maybe_lease),
    st.tuples(st.just("delete_image"), images),
    st.tuples(st.just("delete_container"), st.sampled_from(CONTAINERS)),
    st.tuples(st.just("delete_sandbox"), st.sampled_from(SANDBOXES)),
    st.tuples(st.just("abort"), st.sampled_from(REFS), maybe_lease),
)
where = st.sampled_from([NAMESPACES[0], *NAMESPACES])
collection = st.just(("", ("collect",)))
rounds = st.lists(
    st.tuples(
        st.lists(st.tuples(where, making), min_size=15, max_size=30),
        st.lists(st.tuples(where, taking), max_size=4),
        collection,
    ),
    min_size=1,
    max_size=3,
)
"""Much is made, a little taken away, then collected; and again."""
steps = rounds.map(
    lambda parts: [one for makes, takes, end in parts for one in (*makes, *takes, end)]
)


# The same on the stores ---------------------------------------------------------------------


class Real:
    """One namespace of the stores, with the model's methods."""

    def __init__(self, stores: Metadata, namespace: str) -> None:
        self._stores = stores
        self._namespace = namespace
        self._snapshots = stores.snapshots["memory"]

    def _scope(self, lease: str = "") -> Scope:
        return Scope(self._namespace, lease)

    async def create_lease(self, id: str, labels: Labels) -> None:
        await self._stores.leases.create(self._namespace, Lease(id, labels=labels))

    async def delete_lease(self, id: str) -> None:
        await self._stores.leases.delete(self._namespace, id)

    async def hold(self, lease: str, thing: Thing) -> None:
        resource = Resource(_TYPES[thing[0]], thing[1])
        await self._stores.leases.add_resource(self._namespace, lease, resource)

    async def release(self, lease: str, thing: Thing) -> None:
        resource = Resource(_TYPES[thing[0]], thing[1])
        await self._stores.leases.delete_resource(self._namespace, lease, resource)

    async def write(self, name: str, labels: Labels, lease: str) -> None:
        await add_blob(self._stores, BLOBS[name], labels, self._scope(lease))

    async def label(self, name: str, labels: Labels) -> None:
        await self._stores.content.update(self._scope(), Info(name, labels=labels), [])

    async def delete_blob(self, name: str, lease: str) -> None:
        await self._stores.content.delete(self._scope(lease), name)

    async def prepare(self, key: str, parent: str, labels: Labels, lease: str) -> None:
        await self._snapshots.prepare(self._scope(lease), key, parent, labels)

    async def commit(self, name: str, key: str, labels: Labels, lease: str) -> None:
        await self._snapshots.commit(self._scope(lease), name, key, labels)

    async def remove(self, key: str, lease: str) -> None:
        await self._snapshots.remove(self._scope(lease), key)

    async def create_image(self, name: str, target: str, labels: Labels, lease: str) -> None:
        image = Image(name, Descriptor("t", target, 1), labels)
        await self._stores.images.create(self._namespace, image, lease=lease)

    async def delete_image(self, name: str) -> None:
        await self._stores.images.delete(self._namespace, name)

    async def create_container(self, id: str, key: str, labels: Labels) -> None:
        container = Container(
            id,
            labels=labels,
            runtime=Runtime("r"),
            spec=TypedValue("s", b"{}"),
            snapshotter="memory",
            snapshot_key=key,
        )
        await self._stores.containers.create(self._namespace, container)

    async def delete_container(self, id: str) -> None:
        await self._stores.containers.delete(self._namespace, id)

    async def create_sandbox(self, id: str, labels: Labels) -> None:
        await self._stores.sandboxes.create(self._namespace, Sandbox(id, labels=labels))

    async def delete_sandbox(self, id: str) -> None:
        await self._stores.sandboxes.delete(self._namespace, id)

    async def ingest(self, ref: str, lease: str) -> None:
        await (await self._stores.content.writer(self._scope(lease), ref)).close()

    async def abort(self, ref: str, lease: str) -> None:
        await self._stores.content.abort(self._scope(lease), ref)

    async def everything(self) -> dict[str, set[str]]:
        """All names, by kind; every blob is whole on the disk."""
        content = {info.digest async for info in self._stores.content.walk(self._scope())}
        for digest in content:
            assert await self._stores.content.read_blob(self._scope(), digest) == BLOBS[digest]
        return {
            "leases": {lease.id for lease in self._stores.leases.list(self._namespace)},
            "content": content,
            "snapshots": {info.name async for info in self._snapshots.walk(self._scope())},
            "images": {image.name for image in self._stores.images.list(self._namespace)},
            "containers": {one.id for one in self._stores.containers.list(self._namespace)},
            "ingests": {s.ref for s in await self._stores.content.statuses(self._scope())},
        }


def _modelled(namespace: Namespace) -> dict[str, set[str]]:
    kinds = ("leases", "content", "snapshots", "images", "containers", "ingests")
    return {kind: set(getattr(namespace, kind)) for kind in kinds}


async def _in_stores(work: Callable[[Metadata], Awaitable[None]]) -> None:
    """Stores of their own in a new folder, and nothing left on the disk at the end."""
    with tempfile.TemporaryDirectory() as folder:
        backend = MemorySnapshotter()
        stores = await opened(Path(folder), Recorder(), backend)
        try:
            await work(stores)
            for name in NAMESPACES:
                for container in stores.containers.list(name):
                    await stores.containers.delete(name, container.id)
            await stores.database.write(_forget_all)
            await stores.garbage.sweep()
            assert backend.snapshots == {}
            files = [path for path in (Path(folder) / "content").rglob("*") if path.is_file()]
            assert files == []
        finally:
            await stores.close()


def _forget_all(connection: Any) -> None:
    """No root is left."""
    for table in ("leases", "images", "sandboxes", "refs", "conditions"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
    for table in ("blobs", "snapshots"):
        connection.execute(f"UPDATE {table} SET root = 0")  # noqa: S608
    connection.execute("UPDATE ingests SET expires_at = 1")


# The tests ----------------------------------------------------------------------------------


@pytest.mark.blocks("each example opens a database of its own")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(taken=steps)
def test_collections_take_what_the_model_takes(
    short_temporary_folder: Path, taken: list[tuple[str, tuple[Any, ...]]]
) -> None:
    model = {name: Namespace() for name in NAMESPACES}

    async def work(stores: Metadata) -> None:
        real = {name: Real(stores, name) for name in NAMESPACES}
        for namespace, (verb, *arguments) in taken:
            if verb != "collect":
                possible = getattr(model[namespace], verb)(*arguments)
                try:
                    await getattr(real[namespace], verb)(*arguments)
                except Error as error:
                    assert not possible, f"{verb}{arguments}: {error}"
                else:
                    assert possible, f"{verb}{arguments}"
                continue
            for each in model.values():
                each.collect()
            await stores.garbage.sweep()
            for name in NAMESPACES:
                assert await real[name].everything() == _modelled(model[name])

    asyncio.run(_in_stores(work))


@pytest.mark.blocks("each example opens a database of its own")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(taken=steps)
def test_a_second_look_is_never_surer_than_a_mark(
    short_temporary_folder: Path, taken: list[tuple[str, tuple[Any, ...]]]
) -> None:
    """Whatever clients do after a mark: what the look still takes for garbage a mark does, too."""

    async def work(stores: Metadata) -> None:
        real = {name: Real(stores, name) for name in NAMESPACES}
        found: list[Found] = []
        for namespace, (verb, *arguments) in taken:
            beside = stores.garbage.outside()
            if verb == "collect":
                found = stores.garbage.marked(beside)
                continue
            with contextlib.suppress(Error):
                await getattr(real[namespace], verb)(*arguments)
            look = partial(is_still, found=found, now=time.time_ns(), beside=beside)
            sure: bool = stores.database.read(look)
            if sure:
                assert set(found) <= set(stores.garbage.marked(beside)), (verb, arguments)

    asyncio.run(_in_stores(work))


@pytest.mark.blocks("each example opens a database of its own")
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_collections_take_nothing_from_under_a_client(
    short_temporary_folder: Path, seed: int
) -> None:
    """Clients pull, unpack, run and remove images that share layers, while collections run one
    after the other."""

    async def work(stores: Metadata) -> None:
        done = asyncio.Event()

        async def collect() -> None:
            while not done.is_set():
                await stores.garbage.sweep()
                await asyncio.sleep(0)

        collecting = asyncio.ensure_future(collect())
        try:
            chances = [random.Random(seed + number) for number in range(5)]  # noqa: S311
            clients = [Client(stores, number, chance) for number, chance in enumerate(chances)]
            await asyncio.gather(*(client.run() for client in clients))
        finally:
            done.set()
            await collecting

    asyncio.run(_in_stores(work))


class Client:
    """What a client of containerd does to run a container, again and again."""

    def __init__(self, stores: Metadata, number: int, chance: random.Random) -> None:
        self._stores = stores
        self._number = number
        self._chance = chance
        self._snapshots = stores.snapshots["memory"]

    async def run(self) -> None:
        for turn in range(4):
            name = f"{self._number}-{turn}"
            layers = self._chance.sample(list(BLOBS), 2)
            await self._run(name, layers)

    async def _pause(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)

    async def _run(self, name: str, layers: list[str]) -> None:
        await self._stores.leases.create("one", Lease(name))
        scope = Scope("one", name)
        for layer in layers:
            await self._fetch(scope, layer)
        chain = await self._unpack(scope, layers)
        refs = {f"{PREFIX}ref.content.{number}": layer for number, layer in enumerate(layers)}
        manifest = await add_blob(
            self._stores, name.encode(), {**refs, f"{PREFIX}ref.snapshot.memory": chain}, scope
        )
        await self._stores.images.create("one", Image(name, Descriptor("t", manifest, 1)))
        await self._stores.leases.delete("one", name)
        await self._pause()
        await self._check([*layers, manifest], [chain])
        container = Real(self._stores, "one")
        await self._stores.leases.create("one", Lease(name))
        await self._snapshots.prepare(scope, f"rw-{name}", chain, {})
        await container.create_container(name, f"rw-{name}", {})
        await self._stores.leases.delete("one", name)
        await self._stores.images.delete("one", name)
        await self._pause()
        await self._check([], [chain, f"rw-{name}"])
        await self._stores.containers.delete("one", name)

    async def _fetch(self, scope: Scope, layer: str) -> None:
        """As pulls do: a blob that is there already is held by the lease from then on."""
        try:
            ref = f"layer-{self._number}-{layer}"
            writer = await self._stores.content.writer(scope, ref, expected=layer)
        except AlreadyExists:
            await self._check([layer], [])
            return
        try:
            await self._pause()
            if writer.status.offset == 0:
                await writer.write(BLOBS[layer])
            await writer.commit(len(BLOBS[layer]), layer, {})
        except AlreadyExists:
            pass
        finally:
            await writer.close()
        await self._check([layer], [])

    async def _unpack(self, scope: Scope, layers: list[str]) -> str:
        parent = ""
        for number in range(len(layers)):
            name = "-".join(layer[7:11] for layer in layers[: number + 1])
            key = f"{name}-{self._number}"
            try:
                labels = {"containerd.io/snapshot.ref": name}
                await self._snapshots.prepare(scope, key, parent, labels)
                await self._pause()
                await self._snapshots.commit(scope, name, key, {})
            except AlreadyExists:
                pass  # somebody else has unpacked it, and the lease holds that now
            await self._check([], [name])
            parent = name
        return parent

    async def _check(self, digests: list[str], keys: list[str]) -> None:
        for digest in digests:
            assert await self._stores.content.read_blob(Scope("one"), digest)
        for key in keys:
            assert await self._snapshots.stat(Scope("one"), key)
