"""Random histories of a content store beside a model of the rules, in two namespaces, with
restarts in between."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisord.contracts.content import Writer
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from supervisord.contracts.scope import Scope
from supervisord.metadata.store import Metadata

from .conftest import MemorySnapshotter, Recorder, opened

ROOT = {"containerd.io/gc.root": "model"}
REFS = ("a", "b", "c")
PIECES = (b"", b"x", b"yy", b"zzz")
STEPS = 400


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Ingest:
    """Bytes so far; ``shared`` while they are those of another namespace's blob."""

    data: bytes = b""
    total: int = 0
    shared: bool = False


@dataclass
class Model:
    """What one namespace has."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    ingests: dict[str, Ingest] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)


def taken_up(before: Ingest | None, total: int) -> Ingest:
    """An ingest of its own bytes after it is opened with this total."""
    if before is None:
        return Ingest(total=total)
    if total and before.total and total != before.total:
        return Ingest(total=total)
    data = b"" if before.shared else before.data
    return Ingest(data, before.total or total)


class History:
    """One random life of a store."""

    def __init__(self, seed: int, stores: Metadata) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same history each time
        self.stores = stores
        self.models = {Scope("one"): Model(), Scope("two"): Model()}
        self.told: list[str] = []

    async def step(self) -> None:
        """One random operation, in the store and in the model."""
        scope = self.chance.choice(list(self.models))
        ref = self.chance.choice(REFS)
        actions: list[Callable[[Scope, str], Awaitable[None]]] = [
            self.open,
            self.open,
            self.write,
            self.write,
            self.write,
            self.truncate,
            self.commit,
            self.commit,
            self.close,
            self.abort,
            self.delete,
            self.sweep,
        ]
        action = self.chance.choice(actions)
        self.told.append(f"{action.__name__} {scope.namespace} {ref}")
        await action(scope, ref)
        await self.compare(scope)

    async def expect(self, wanted: type[Error] | None, call: Awaitable[object]) -> None:
        """The call must end as the model says."""
        try:
            await call
        except Error as error:
            assert wanted is not None, error
            assert isinstance(error, wanted), error
        else:
            assert wanted is None, f"no {wanted}"

    def known(self) -> dict[str, bytes]:
        """All blobs of all namespaces."""
        return {k: v for model in self.models.values() for k, v in model.blobs.items()}

    async def open(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        guess = b"".join(self.chance.choices(PIECES, k=2))
        data = self.chance.choice([guess, *self.known().values()])
        expected = self.chance.choice(["", sha(data)])
        total = self.chance.choice([0, len(data), 7])
        opening = self.stores.content.writer(scope, ref, total=total, expected=expected)
        if expected in model.blobs:
            return await self.expect(AlreadyExists, opening)
        if ref in model.writers:
            return await self.expect(Unavailable, opening)
        model.writers[ref] = await opening
        blob = self.known().get(expected)
        if blob is not None and total in (0, len(blob)):
            model.ingests[ref] = Ingest(blob, len(blob), shared=True)
        else:
            model.ingests[ref] = taken_up(model.ingests.get(ref), total)
        return None

    async def write(self, scope: Scope, ref: str) -> None:
        model, piece = self.models[scope], self.chance.choice(PIECES)
        if ref in model.writers:
            await model.writers[ref].write(piece)
            model.ingests[ref].data += piece
            model.ingests[ref].shared &= not piece

    async def truncate(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        if ref not in model.writers:
            return None
        ingest = model.ingests[ref]
        size = self.chance.choice([0, 0, 1, len(ingest.data)])
        if size > len(ingest.data):
            return await self.expect(FailedPrecondition, model.writers[ref].truncate(size))
        await model.writers[ref].truncate(size)
        ingest.data, ingest.shared = ingest.data[:size], False
        return None

    async def commit(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        if ref not in model.writers:
            return None
        data = model.ingests[ref].data
        size = self.chance.choice([0, len(data), len(data), 99])
        expected = self.chance.choice(["", sha(data), sha(data), sha(b"other")])
        committing = model.writers[ref].commit(size, expected, ROOT)
        if size == 99 or expected == sha(b"other"):
            return await self.expect(FailedPrecondition, committing)
        await self.expect(AlreadyExists if sha(data) in model.blobs else None, committing)
        model.blobs[sha(data)] = data
        del model.ingests[ref]
        await model.writers.pop(ref).close()
        return None

    async def close(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        if ref in model.writers:
            await model.writers.pop(ref).close()

    async def abort(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        wanted = None if model.ingests.pop(ref, None) else NotFound
        await self.expect(wanted, self.stores.content.abort(scope, ref))
        if ref in model.writers:
            writer = model.writers.pop(ref)
            await self.expect(FailedPrecondition, writer.write(b"x"))
            await writer.close()

    async def delete(self, scope: Scope, ref: str) -> None:
        model = self.models[scope]
        digest = self.chance.choice([*sorted(self.known()), sha(b"nowhere")])
        wanted = None if model.blobs.pop(digest, None) is not None else NotFound
        await self.expect(wanted, self.stores.content.delete(scope, digest))

    async def sweep(self, scope: Scope, ref: str) -> None:
        await self.stores.garbage.sweep()

    async def compare(self, scope: Scope) -> None:
        """The namespace is as the model has it."""
        content, model = self.stores.content, self.models[scope]
        assert {i.digest async for i in content.walk(scope)} == set(model.blobs)
        for digest, data in model.blobs.items():
            assert await content.read_blob(scope, digest) == data
        found = {status.ref: status for status in await content.statuses(scope)}
        assert {r: (s.offset, s.total) for r, s in found.items()} == {
            ref: (len(ingest.data), ingest.total) for ref, ingest in model.ingests.items()
        }
        for ref, writer in model.writers.items():
            assert writer.digest() == sha(model.ingests[ref].data)
            assert writer.status.offset == len(model.ingests[ref].data)

    async def leave(self) -> None:
        """All writers are closed."""
        for model in self.models.values():
            for writer in model.writers.values():
                await writer.close()
            model.writers.clear()


@pytest.mark.parametrize("seed", range(6))
async def test_a_random_history(
    tmp_path: Path, events: Recorder, backend: MemorySnapshotter, seed: int
) -> None:
    stores = await opened(tmp_path, events, backend)
    history = History(seed, stores)
    try:
        for number in range(1, STEPS + 1):
            try:
                await history.step()
            except AssertionError as error:
                error.add_note("after: " + ", ".join(history.told[-12:]))
                raise
            if number % 90 == 0:
                await history.leave()
                await stores.close()
                history.stores = stores = await opened(tmp_path, events, backend)
                await stores.recover()
    finally:
        await history.leave()
        await stores.garbage.sweep()
        await stores.close()
    blobs = {path.name for path in (tmp_path / "content" / "blobs" / "sha256").iterdir()}
    waiting = {sha(i.data) for m in history.models.values() for i in m.ingests.values() if i.shared}
    assert blobs == {digest[7:] for digest in {*history.known(), *waiting}}
    files = sum(not i.shared for m in history.models.values() for i in m.ingests.values())
    assert len(list((tmp_path / "content" / "ingest").iterdir())) == files
