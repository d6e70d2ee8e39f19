"""Content in the metadata database and on disk; implements contracts.content.ContentStore.

A blob is on disk before its row, and its row is gone before the file. The ingest's row is there
before its file. Blobs are one file for all namespaces.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from protos.containerd.events import events_pb2
from supervisord.aio.locks import KeyedLock
from supervisord.aio.owner import TaskOwner
from supervisord.content.behind import Behind
from supervisord.content.blobs import BlobFiles
from supervisord.content.ingest import Ingest
from supervisord.content.reader import BlobReader
from supervisord.contracts import filters as filter_language
from supervisord.contracts.content import Info, Status
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from supervisord.contracts.identifiers import check_digest, check_ref
from supervisord.contracts.scope import Scope

from . import content_rows as rows
from . import labels as label_rules
from . import references
from .commits import Commits
from .content_writer import ContentWriter, Wanted
from .removals import Removals, note_blob, note_ingest
from .rows import readable
from .sequences import Sequence as Numbers

_PAGE = 500
_INGEST_LIFETIME = 24 * 3600 * 1_000_000_000
_LOCKED_SECONDS = 0.5
"""How long an open ref is waited for: whoever has just ended its stream may not be heard of yet."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the content store and its writers work with."""

    commits: Commits
    files: BlobFiles
    removals: Removals
    blob_locks: KeyedLock
    executor: Executor
    owner: TaskOwner
    behind: Behind = field(default_factory=Behind)


class Content:
    """The store; see the contract for what each method promises.

    ``isolated``: a namespace gets no blob of another one without bringing the bytes."""

    def __init__(self, parts: Parts, numbers: Numbers, *, isolated: bool = False) -> None:
        self._parts = parts
        self._commits = parts.commits
        self._numbers = numbers
        self._isolated = isolated
        self._refs = KeyedLock()
        self._open: dict[tuple[str, str], ContentWriter] = {}

    def open_ingests(self) -> frozenset[tuple[str, str]]:
        """Namespaces and refs of the ingests that have a writer: no garbage."""
        return frozenset(self._open)

    async def info(self, scope: Scope, digest: str) -> Info:
        """Raises NotFound."""
        return self._commits.read(lambda c: rows.info(c, scope.namespace, digest))

    async def update(self, scope: Scope, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Changes labels. Raises NotFound, InvalidArgument."""

        def change(connection: sqlite3.Connection) -> Info:
            current = rows.info(connection, scope.namespace, info.digest)
            thing = f'content info "{info.digest}"'
            wanted = label_rules.updated(current.labels, info.labels, fieldpaths, thing)
            labels = label_rules.checked(wanted, "info.labels")
            return rows.relabel(connection, scope.namespace, current, labels)

        return await self._commits.write(change)

    async def walk(self, scope: Scope, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """All blobs that match, in order of digest. Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        last = ""
        while True:
            page = self._commits.read(lambda c: rows.page(c, scope.namespace, last, _PAGE))  # noqa: B023
            for info in readable(page, rows.from_row, "blob"):
                if wanted.always or wanted.match(rows.adaptor(info)):
                    yield info
            if len(page) < _PAGE:
                return
            last = page[-1][0]
            await asyncio.sleep(0)

    async def delete(self, scope: Scope, digest: str) -> None:
        """Removes it from this namespace. Publishes /content/delete. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            rows.require(connection, scope.namespace, digest)
            rows.delete(connection, scope.namespace, digest)
            references.release(connection, scope, references.Node(references.CONTENT, digest))
            note_blob(connection, digest)

        await self._commits.write(remove, deleted=True)
        self._parts.removals.poke()
        event = events_pb2.ContentDelete(digest=digest)
        self._commits.publish(scope.namespace, "/content/delete", event)

    async def reader(self, scope: Scope, digest: str) -> BlobReader:
        """Opens a blob. Raises NotFound, DataLoss if its file has another size."""
        size = self._commits.read(lambda c: rows.size(c, scope.namespace, digest))
        reader = BlobReader(self._parts.files.blob_path(check_digest(digest)))
        if reader.size != size:
            reader.close()
            raise DataLoss(
                f"content {digest}: the blob on the disk has {reader.size} bytes of {size}"
            )
        return reader

    async def read_blob(self, scope: Scope, digest: str, limit: int = 8 << 20) -> bytes:
        """A whole small blob. Raises NotFound, ResourceExhausted over limit."""
        reader = await self.reader(scope, digest)
        try:
            if reader.size > limit:
                raise ResourceExhausted(
                    f"content {digest}: has {reader.size} bytes, more than {limit}"
                )
            data = await reader.read(0, reader.size)
            if len(data) != reader.size:
                raise DataLoss(f"content {digest}: the blob on the disk has lost its end")
            return data
        finally:
            reader.close()

    # Ingests -------------------------------------------------------------------------------

    async def writer(
        self, scope: Scope, ref: str, *, total: int = 0, expected: str = "", media_type: str = ""
    ) -> ContentWriter:
        """Opens or resumes an ingest.

        Raises InvalidArgument, Unavailable (locked), AlreadyExists, NotFound (lease),
        ResourceExhausted (full disk)."""
        check_ref(ref)
        if total < 0:
            raise InvalidArgument("total: must not be negative")
        if expected:
            check_digest(expected, "expected")
            await self._refuse_present(scope, expected)
        owner = self._parts.owner
        wanted = Wanted(scope, ref, total, expected, media_type)
        opening = owner.spawn(self._open_writer(wanted), "writer")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            owner.spawn(_abandon(opening), "writer nobody wants")
            raise

    async def status(self, scope: Scope, ref: str) -> Status:
        """Raises NotFound."""
        row = self._commits.read(lambda c: rows.ingest(c, scope.namespace, ref))
        if row is None:
            raise _no_ref(ref)
        return await asyncio.to_thread(self._status, scope.namespace, row)

    async def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Status]:
        """Ingests of this namespace whose ``ref`` matches, in order of ref.

        Raises InvalidArgument."""
        wanted = filter_language.parse(filters)
        found = self._commits.read(lambda c: rows.ingests(c, scope.namespace))
        matching = [row for row in found if wanted.always or wanted.match(_by_ref(row.ref))]
        if not matching:
            return []
        return await asyncio.to_thread(
            lambda: [self._status(scope.namespace, row) for row in matching]
        )

    async def abort(self, scope: Scope, ref: str) -> None:
        """Drops an ingest and its bytes; an open writer of it ends. Raises NotFound."""
        key = (scope.namespace, ref)
        async with self._refs.hold(key):
            row = self._commits.read(lambda c: rows.ingest(c, *key))
            if row is None:
                raise _no_ref(ref)
            number = row.file

            def remove(connection: sqlite3.Connection) -> None:
                rows.delete_ingest(connection, scope.namespace, ref)
                references.release(connection, scope, references.Node(references.INGESTS, ref))
                note_ingest(connection, number)

            writer = self._open.get(key)
            if writer is not None:
                await writer.cut()
            await self._commits.write(remove, deleted=True)
        self._parts.removals.poke()

    async def _refuse_present(self, scope: Scope, digest: str) -> None:
        """Raises AlreadyExists if the namespace has the blob, which the lease then holds."""

        def has(connection: sqlite3.Connection) -> bool:
            try:
                rows.require(connection, scope.namespace, digest)
            except NotFound:
                return False
            return True

        def hold(connection: sqlite3.Connection) -> bool:
            """It may have been collected since it was seen."""
            if not has(connection):
                return False
            references.hold(connection, scope, references.Node(references.CONTENT, digest))
            return True

        if not self._commits.read(has) or (scope.lease and not await self._commits.write(hold)):
            return
        raise AlreadyExists(f"content {digest}: already exists")

    async def _open_writer(self, wanted: Wanted) -> ContentWriter:
        key, expected = wanted.key, wanted.expected
        if key in self._open:
            await self._open[key].over(_LOCKED_SECONDS)
        async with self._refs.hold(key):
            if key in self._open:
                since = self._open[key].status.started_at
                seconds = (time.time_ns() - since) / 1e9
                raise Unavailable(
                    f"ref {wanted.ref} locked for {seconds:.1f}s by another writer: unavailable"
                )
            if not expected:
                return await self._begin(wanted, None)
            async with self._parts.blob_locks.hold(expected):
                return await self._begin(wanted, self._elsewhere(expected, wanted.total))

    def _elsewhere(self, digest: str, total: int) -> int | None:
        """The size of a blob of another namespace that may be had without its bytes."""
        if not self._commits.read(lambda c: rows.shareable(c, digest, isolated=self._isolated)):
            return None
        size = self._parts.files.blob_size(digest)
        return size if total in (0, size) else None

    async def _begin(self, wanted: Wanted, shared: int | None) -> ContentWriter:
        row = await self._row(wanted, shared)
        ingest: Ingest | None = None
        if shared is None:
            algorithm = wanted.expected.partition(":")[0] or "sha256"
            path = self._parts.files.ingest_path(row.file)
            ingest = await Ingest.open(path, algorithm, self._parts.executor, self._parts.behind)
        key, updated_at = wanted.key, 0
        if ingest is not None and ingest.offset:  # when it was written to, not when it goes on
            _, updated_at = await asyncio.to_thread(self._parts.files.ingest_stat, row.file)
        writer = ContentWriter(
            self._parts, wanted, row, ingest, shared, lambda: self._open.pop(key, None), updated_at
        )
        self._open[key] = writer
        return writer

    async def _row(self, wanted: Wanted, shared: int | None) -> rows.IngestRow:
        """The ingest's row; a file that it had and has no longer is removed."""
        scope, ref = wanted.scope, wanted.ref
        fresh = rows.IngestRow(
            ref=ref,
            file=await self._numbers.next(),
            total=wanted.total if shared is None else shared,
            expected=wanted.expected if shared is not None else "",
            started_at=time.time_ns(),
        )

        def begin(connection: sqlite3.Connection) -> tuple[rows.IngestRow, bool]:
            before = rows.ingest(connection, scope.namespace, ref)
            row = rows.begin(connection, scope, fresh, fresh.started_at + _INGEST_LIFETIME)
            replaced = before is not None and before.file != row.file
            if before is not None and replaced:
                note_ingest(connection, before.file)
            return row, replaced

        row, replaced = await self._commits.write(begin)
        if replaced:
            self._parts.removals.poke()
        return row

    def _status(self, namespace: str, row: rows.IngestRow) -> Status:
        writer = self._open.get((namespace, row.ref))
        if writer is not None:
            return writer.status
        if row.expected:
            size = self._parts.files.blob_size(row.expected) or 0
            return row.status(size, row.started_at)
        return row.status(*self._parts.files.ingest_stat(row.file))


async def _abandon(opening: asyncio.Task[ContentWriter]) -> None:
    await (await opening).close()


def _no_ref(ref: str) -> NotFound:
    return NotFound(f"reference {ref}: not found")


def _by_ref(ref: str) -> filter_language.Adaptor:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        return (ref, True) if path[0] == "ref" else ("", False)

    return field
