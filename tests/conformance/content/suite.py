"""One suite for all content stores: the rules of ``contracts.content``, tried out.

Subclass ``ContentSuite`` and give it the fixtures ``store`` (an open one), ``scope`` and ``other``
(two namespaces that have nothing yet). It runs in process through the metadata, and over gRPC
against Debian's containerd and ours. ``SharedSuite`` and ``IsolatedSuite`` are for stores with
that sharing policy. The cases are those of containerd's own suite, plus rules that its sources
state.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from supervisord.contracts.content import ContentStore, Info, Writer
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from supervisord.contracts.scope import Scope

ROOT = {"containerd.io/gc.root": "test"}
SOURCE = "containerd.io/distribution.source.docker.io"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of some bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Suite:
    """What both suites need."""

    algorithms: tuple[str, ...] = ("sha256", "sha384", "sha512")
    """The algorithms that the store keeps blobs under."""

    @asynccontextmanager
    async def opened(
        self, store: ContentStore, scope: Scope, ref: str, total: int = 0, expected: str = ""
    ) -> AsyncIterator[Writer]:
        """An open ingest, closed at the end."""
        writer = await store.writer(scope, ref, total=total, expected=expected)
        try:
            yield writer
        finally:
            await writer.close()

    async def add(
        self,
        store: ContentStore,
        scope: Scope,
        data: bytes,
        labels: Mapping[str, str] = ROOT,
        ref: str = "add",
    ) -> str:
        """A new blob; answers its digest."""
        async with self.opened(store, scope, ref, len(data)) as writer:
            await writer.write(data)
            return (await writer.commit(len(data), "", labels)).digest

    async def locked(self, store: ContentStore, scope: Scope, ref: str) -> None:
        """Somebody has the ref open."""
        with pytest.raises(Unavailable, match=ref):
            async with self.opened(store, scope, ref):
                pass


class ContentSuite(Suite):
    """Subclass it; see the module."""

    forgets_the_bytes = True
    """Whether an ingest that is opened with another total loses the bytes it has."""

    abort_frees_the_ref = True
    """Whether a ref can be opened anew while the writer of the aborted ingest is still open."""

    # Writing -------------------------------------------------------------------------------

    async def test_writers_are_independent(self, store: ContentStore, scope: Scope) -> None:
        blobs = [os.urandom(256) for _ in range(4)] + [os.urandom(3 << 20)]
        promises: list[dict[str, object]] = [
            {},
            {"total": 256},
            {"expected": digest_of(blobs[2])},
            {"total": 256, "expected": digest_of(blobs[3])},
            {"total": 3 << 20, "expected": digest_of(blobs[4])},
        ]
        writers = [
            await store.writer(scope, f"c{at}", **promise)  # type: ignore[arg-type]
            for at, promise in enumerate(promises)
        ]
        for data, writer in zip(blobs, writers, strict=True):
            for at in range(0, min(len(data), 256), 32):
                await writer.write(data[at : at + 32])
            await writer.write(data[256:])
            before = time.time_ns()
            info = await writer.commit(0, "", ROOT)
            assert writer.digest() == info.digest == digest_of(data)
            assert (info.size, dict(info.labels)) == (len(data), ROOT)
            assert before <= info.created_at == info.updated_at <= time.time_ns()
            assert await store.info(scope, info.digest) == info
            assert await store.read_blob(scope, info.digest) == data
        for writer in writers:
            await writer.close()
        assert await store.statuses(scope) == []

    @pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20, (16 << 20) - 1024])
    async def test_pieces_of_any_size(self, store: ContentStore, scope: Scope, size: int) -> None:
        data = os.urandom(min(size * 40, (20 << 20) + 1))
        async with self.opened(store, scope, "pieces", len(data), digest_of(data)) as writer:
            for at in range(0, len(data), size):
                await writer.write(data[at : at + size])
                assert writer.status.offset == min(at + size, len(data))
            assert (await writer.commit(len(data), digest_of(data), ROOT)).size == len(data)
        reader = await store.reader(scope, digest_of(data))
        assert await reader.read(0, len(data)) == data
        reader.close()

    async def test_empty_writes_change_nothing(self, store: ContentStore, scope: Scope) -> None:
        async with self.opened(store, scope, "empty") as writer:
            await writer.write(b"")
            assert (writer.status.offset, writer.digest()) == (0, digest_of(b""))
            await writer.write(b"abc")
            await writer.write(b"")
            assert (writer.status.offset, writer.digest()) == (3, digest_of(b"abc"))
            await writer.truncate(0)
            await writer.write(b"")
            info = await writer.commit(0, "", ROOT)
        assert (info.digest, info.size) == (digest_of(b""), 0)
        assert await store.read_blob(scope, info.digest) == b""

    async def test_the_status_follows_the_writer(self, store: ContentStore, scope: Scope) -> None:
        data = os.urandom(256)
        before = time.time_ns()
        async with self.opened(store, scope, "s", len(data), digest_of(data)) as writer:
            opened = time.time_ns()
            status, digest = writer.status, writer.digest()
            assert (status.ref, status.offset, status.total) == ("s", 0, 256)
            assert digest == digest_of(b"")
            assert before <= status.started_at <= opened
            assert before <= status.updated_at <= opened
            before = time.time_ns()
            await writer.write(data[:100])
            after = time.time_ns()
            assert writer.digest() == digest_of(data[:100])
            assert (writer.status.offset, writer.status.started_at) == (100, status.started_at)
            assert before <= writer.status.updated_at <= after
            found = await store.status(scope, "s")
            assert (found.ref, found.total) == ("s", 256)
            assert found.started_at == status.started_at
            assert [other.ref for other in await store.statuses(scope)] == ["s"]
        with pytest.raises(NotFound, match="absent"):
            await store.status(scope, "absent")

    async def test_an_ingest_goes_on_where_it_was(self, store: ContentStore, scope: Scope) -> None:
        data = os.urandom(256)
        async with self.opened(store, scope, "r", 256, digest_of(data)) as writer:
            await writer.write(data[:128])
            started = writer.status.started_at
            await self.locked(store, scope, "r")
        async with self.opened(store, scope, "r", 256, digest_of(data)) as writer:
            assert (writer.status.offset, writer.status.total) == (128, 256)
            assert writer.status.started_at == started
            assert writer.digest() == digest_of(data[:128])
            await writer.write(data[128:])
            await writer.commit(0, "", ROOT)
        assert await store.read_blob(scope, digest_of(data)) == data

    @pytest.mark.parametrize("size", [500, 50_000])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
    @pytest.mark.parametrize("again", [False, True], ids=["goes on", "starts over"])
    async def test_resume(
        self, store: ContentStore, scope: Scope, size: int, share: float, again: bool
    ) -> None:
        data, cut = os.urandom(size), int(size * share)
        async with self.opened(store, scope, "r", size, digest_of(data)) as writer:
            await writer.write(data[:cut])
        async with self.opened(store, scope, "r", size, digest_of(data)) as writer:
            assert writer.status.offset == cut
            if again:
                await writer.truncate(0)
                cut = 0
            for at in range(cut, size, 1024):
                await writer.write(data[at : min(at + 1024, size)])
            await writer.commit(size, digest_of(data), ROOT)
        assert await store.read_blob(scope, digest_of(data)) == data

    async def test_another_total_starts_over(self, store: ContentStore, scope: Scope) -> None:
        async with self.opened(store, scope, "r", 10) as writer:
            await writer.write(b"12345")
        async with self.opened(store, scope, "r", 3) as writer:
            assert (writer.status.offset, writer.status.total) == (0, 3)
            await writer.write(b"abc")
            if self.forgets_the_bytes:
                assert (await writer.commit(3, digest_of(b"abc"), ROOT)).size == 3
                assert await store.read_blob(scope, digest_of(b"abc")) == b"abc"

    async def test_abort_drops_the_bytes(self, store: ContentStore, scope: Scope) -> None:
        async with self.opened(store, scope, "r", 10) as writer:
            await writer.write(b"12345")
        await store.abort(scope, "r")
        with pytest.raises(NotFound, match="r"):
            await store.abort(scope, "r")
        assert await store.statuses(scope) == []
        async with self.opened(store, scope, "r") as writer:
            assert writer.status.offset == 0

    async def test_abort_under_a_writer(self, store: ContentStore, scope: Scope) -> None:
        async with self.opened(store, scope, "r") as writer:
            await writer.write(b"12345")
            await store.abort(scope, "r")
            assert await store.statuses(scope) == []
            if self.abort_frees_the_ref:
                async with self.opened(store, scope, "r") as second:
                    assert second.status.offset == 0
                    await second.write(b"abc")
                    await second.commit(3, "", ROOT)
            with pytest.raises(Error):
                await writer.commit(0, "", ROOT)
        with pytest.raises(NotFound):
            await store.info(scope, digest_of(b"12345"))

    # Committing ----------------------------------------------------------------------------

    async def test_second_commit_exists_and_changes_nothing(
        self, store: ContentStore, scope: Scope
    ) -> None:
        data = os.urandom(256)
        digest = await self.add(store, scope, data, {**ROOT, "first": "1"})
        before = await store.info(scope, digest)
        for expected in (digest, ""):
            with pytest.raises(AlreadyExists, match=digest):
                async with self.opened(store, scope, "again") as writer:
                    await writer.write(data)
                    await writer.commit(len(data), expected, {**ROOT, "second": "2"})
            assert await store.statuses(scope) == [], "the ingest is dropped"
        with pytest.raises(AlreadyExists, match=digest):
            async with self.opened(store, scope, "again", expected=digest):
                pass
        assert await store.info(scope, digest) == before

    async def test_the_states_of_failed_commits(self, store: ContentStore, scope: Scope) -> None:
        data = os.urandom(256)
        digest = await self.add(store, scope, data)
        for expected in (digest, ""):
            with pytest.raises(AlreadyExists):
                async with self.opened(store, scope, "c") as writer:
                    await writer.write(data)
                    await self.locked(store, scope, "c")
                    await writer.commit(256, expected, ROOT)
        with pytest.raises(FailedPrecondition, match="digest"):
            async with self.opened(store, scope, "c") as writer:
                assert writer.status.offset == 0
                await writer.write(data + b"more")
                await writer.commit(260, digest_of(b"other"), ROOT)
        with pytest.raises(FailedPrecondition, match="size"):
            async with self.opened(store, scope, "c") as writer:
                assert writer.status.offset == 260, "a mismatch keeps the ingest"
                await self.locked(store, scope, "c")
                await writer.commit(256, "", ROOT)
        async with self.opened(store, scope, "c") as writer:
            assert (await writer.commit(260, "", ROOT)).digest == digest_of(data + b"more")
        async with self.opened(store, scope, "c") as writer:
            assert writer.status.offset == 0, "the ref is free again"

    async def test_one_of_many_writers_of_the_same_bytes_wins(
        self, store: ContentStore, scope: Scope
    ) -> None:
        data = os.urandom(100_000)

        async def one(number: int) -> str:
            try:
                return await self.add(store, scope, data, ref=f"r{number}")
            except AlreadyExists:
                return ""

        made = await asyncio.gather(*(one(number) for number in range(8)))
        assert sorted(made) == [""] * 7 + [digest_of(data)]
        assert await store.statuses(scope) == []

    async def test_algorithms(self, store: ContentStore, scope: Scope) -> None:
        for algorithm in self.algorithms:
            for early in (False, True):
                data = os.urandom(1000)
                digest = digest_of(data, algorithm)
                promised = digest if early else ""
                async with self.opened(store, scope, "r", 0, promised) as writer:
                    await writer.write(data[:500])
                async with self.opened(store, scope, "r", 0, promised) as writer:
                    await writer.write(data[500:])
                    assert (await writer.commit(1000, digest, ROOT)).digest == digest
                assert await store.read_blob(scope, digest) == data
                assert (await store.info(scope, digest)).size == 1000
                with pytest.raises(AlreadyExists, match=algorithm):
                    async with self.opened(store, scope, "r", 0, digest):
                        pass
                with pytest.raises(FailedPrecondition, match=algorithm):
                    async with self.opened(store, scope, "w") as writer:
                        await writer.write(b"x")
                        await writer.commit(0, digest_of(data[1:], algorithm), ROOT)
                await store.abort(scope, "w")
                await store.delete(scope, digest)

    # Blobs ---------------------------------------------------------------------------------

    async def test_reading_beyond_the_end(self, store: ContentStore, scope: Scope) -> None:
        digest = await self.add(store, scope, b"foobar")
        reader = await store.reader(scope, digest)
        assert reader.size == 6
        assert await reader.read(0, 7) == b"foobar"
        assert await reader.read(2, 3) == b"oba"
        assert await reader.read(5, 1 << 40) == b"r"
        assert await reader.read(6, 1) == b""
        reader.close()

    async def test_labels_are_replaced_or_changed_one_by_one(
        self, store: ContentStore, scope: Scope
    ) -> None:
        digest = await self.add(store, scope, os.urandom(10), {**ROOT, "k1": "v1", "k2": "v2"})
        made = await store.info(scope, digest)
        before = time.time_ns()
        wanted = {**ROOT, "k1": "new", "k3": "v3"}
        info = await store.update(scope, Info(digest, labels=wanted), [])
        assert dict(info.labels) == wanted
        assert (info.size, info.created_at) == (10, made.created_at)
        assert before <= info.updated_at <= time.time_ns()
        assert await store.info(scope, digest) == info
        change = Info(digest, labels={"k1": "v1", "k2": "not asked for"})
        await store.update(scope, change, ["labels.k3", "labels.k1"])
        assert dict((await store.info(scope, digest)).labels) == {**ROOT, "k1": "v1"}
        await store.update(scope, Info(digest, labels=ROOT), ["labels"])
        assert dict((await store.info(scope, digest)).labels) == ROOT
        for path in ("size", "digest", "created_at", "label", "labels_"):
            with pytest.raises(InvalidArgument, match=path):
                await store.update(scope, change, ["labels.k1", path])
        assert dict((await store.info(scope, digest)).labels) == ROOT, "all or nothing"
        with pytest.raises(NotFound, match=digest_of(b"absent")):
            await store.update(scope, Info(digest_of(b"absent"), labels=ROOT), ["labels"])

    async def test_sources_are_labels(self, store: ContentStore, scope: Scope) -> None:
        digest = await self.add(store, scope, os.urandom(10), {**ROOT, SOURCE: "library/a"})
        await self.add(store, scope, os.urandom(10))
        change = Info(digest, labels={SOURCE: "library/a,library/b"})
        info = await store.update(scope, change, [f"labels.{SOURCE}"])
        assert dict(info.labels) == {**ROOT, SOURCE: "library/a,library/b"}
        for match in ("~=library/b", "==library/a,library/b", ""):
            if "," in match:
                match = '=="library/a,library/b"'
            found = [i.digest async for i in store.walk(scope, [f'labels."{SOURCE}"{match}'])]
            assert found == [digest], match

    async def test_a_label_has_a_limit(self, store: ContentStore, scope: Scope) -> None:
        fits, long = {"k": "v" * 4095}, {"k": "v" * 4096}
        digest = await self.add(store, scope, b"fits" + os.urandom(5), {**ROOT, **fits})
        with pytest.raises(InvalidArgument, match="4096"):
            await store.update(scope, Info(digest, labels=long), ["labels.k"])
        with pytest.raises(InvalidArgument, match="4096"):
            await self.add(store, scope, b"long", long)
        with pytest.raises(NotFound):
            await store.info(scope, digest_of(b"long"))

    async def test_walk_and_statuses_by_filters(self, store: ContentStore, scope: Scope) -> None:
        made = [
            await self.add(store, scope, os.urandom(9), {**ROOT, "tier": tier, f"is.{tier}": "1"})
            for tier in ("web", "wide", "db")
        ]
        for filters, wanted in {
            (): made,
            ("labels.tier==web",): made[:1],
            ("labels.tier!=web",): made[1:],
            ("labels.tier~=^w",): made[:2],
            ("labels.is.db",): made[2:],
            (f"digest=={made[1]}",): made[1:2],
            (f"digest~=^{made[0][:30]}", "labels.tier==db"): [made[0], made[2]],
            ("labels.tier~=w,labels.is.web==1",): made[:1],
            ("size==9",): [],
            ("nosuch",): [],
        }.items():
            found = [info.digest async for info in store.walk(scope, filters)]
            assert found == sorted(wanted), filters
        for ref in ("layer-one", "layer-two", "config-one"):
            async with self.opened(store, scope, ref):
                pass
        for filter, refs in {
            "ref~=^layer-": ["layer-one", "layer-two"],
            "ref~=one$": ["config-one", "layer-one"],
            'ref~="^(config|layer)-o"': ["config-one", "layer-one"],
            "ref==layer-two": ["layer-two"],
            "ref!=layer-two": ["config-one", "layer-one"],
            "ref": ["config-one", "layer-one", "layer-two"],
            "nosuch": [],
        }.items():
            found = [status.ref for status in await store.statuses(scope, [filter])]
            assert sorted(found) == refs, filter

    async def test_delete(self, store: ContentStore, scope: Scope) -> None:
        data = os.urandom(20)
        digest = await self.add(store, scope, data)
        await store.delete(scope, digest)
        assert [info async for info in store.walk(scope)] == []
        for call in (store.info, store.delete, store.reader):
            with pytest.raises(NotFound, match=digest):
                await call(scope, digest)
        assert await self.add(store, scope, data) == digest

    async def test_namespaces_see_their_own(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        data = os.urandom(30)
        digest = await self.add(store, scope, data, {**ROOT, "whose": "mine"})
        for call in (store.info, store.delete, store.reader):
            with pytest.raises(NotFound, match=digest):
                await call(other, digest)
        async with self.opened(store, scope, "r"), self.opened(store, other, "r") as writer:
            await writer.write(data)
            info = await writer.commit(0, "", {**ROOT, "whose": "theirs"})
        assert (info.digest, info.labels["whose"]) == (digest, "theirs")
        await store.update(other, Info(digest, labels={"whose": "new"}), ["labels.whose"])
        assert (await store.info(scope, digest)).labels["whose"] == "mine"
        await store.delete(scope, digest)
        assert await store.read_blob(other, digest) == data


class SharedSuite(Suite):
    """For a store where a blob can be had by its digest."""

    async def test_a_blob_of_another_is_there_at_once(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        data = os.urandom(1000)
        digest = await self.add(store, scope, data, {**ROOT, "whose": "mine"})
        async with self.opened(store, other, "r", 1000, digest) as writer:
            assert (writer.status.offset, writer.status.total) == (1000, 1000)
            assert writer.digest() == digest
            with pytest.raises(NotFound):
                await store.info(other, digest)
            info = await writer.commit(1000, digest, ROOT)
        assert (info.digest, info.size, dict(info.labels)) == (digest, 1000, ROOT)
        for each in (scope, other):
            assert await store.read_blob(each, digest) == data

    async def test_a_blob_of_another_is_checked_too(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        digest = await self.add(store, scope, os.urandom(1000))
        for size, expected in ((999, digest), (1000, digest_of(b"other"))):
            with pytest.raises(FailedPrecondition):
                async with self.opened(store, other, "r", 0, digest) as writer:
                    await writer.commit(size, expected, ROOT)
        async with self.opened(store, other, "s", 999, digest) as writer:
            assert writer.status.offset == 0, "what is promised is not that blob"

    async def test_a_blob_of_another_is_appended_to(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        data, more = os.urandom(1000), b"appended"
        digest = await self.add(store, scope, data)
        async with self.opened(store, other, "r", 1000, digest) as writer:
            await writer.write(more)
            assert writer.digest() == digest_of(data + more)
            await writer.commit(1008, digest_of(data + more), ROOT)
        assert await store.read_blob(scope, digest) == data
        assert await store.read_blob(other, digest_of(data + more)) == data + more

    async def test_a_blob_of_another_is_started_over(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        data = os.urandom(1000)
        digest = await self.add(store, scope, data)
        async with self.opened(store, other, "r", 1000, digest) as writer:
            await writer.truncate(0)
            assert (writer.status.offset, writer.digest()) == (0, digest_of(b""))
            await writer.write(b"other")
            await writer.commit(5, digest_of(b"other"), ROOT)
        assert await store.read_blob(scope, digest) == data
        assert await store.read_blob(other, digest_of(b"other")) == b"other"


class IsolatedSuite(Suite):
    """For a store where the bytes must be brought; ``generous`` is a namespace that is labelled
    ``containerd.io/namespace.shareable=true``."""

    async def test_the_bytes_must_be_brought(
        self, store: ContentStore, scope: Scope, other: Scope
    ) -> None:
        data = os.urandom(1000)
        digest = await self.add(store, scope, data)
        with pytest.raises(FailedPrecondition):
            async with self.opened(store, other, "r", 1000, digest) as writer:
                assert (writer.status.offset, writer.digest()) == (0, digest_of(b""))
                await writer.commit(1000, digest, ROOT)
        async with self.opened(store, other, "r", 1000, digest) as writer:
            await writer.write(data)
            await writer.commit(1000, digest, ROOT)
        assert await store.read_blob(other, digest) == data

    async def test_a_shareable_namespace_gives(
        self, store: ContentStore, generous: Scope, other: Scope
    ) -> None:
        data = os.urandom(1000)
        digest = await self.add(store, generous, data)
        async with self.opened(store, other, "r", 1000, digest) as writer:
            assert (writer.status.offset, writer.digest()) == (1000, digest)
            await writer.commit(1000, digest, ROOT)
        assert await store.read_blob(other, digest) == data
