"""An open ingest; implements contracts.content.Writer.

Two kinds: one with bytes of its own, and one that stands for a blob which another namespace has
brought, and which has all its bytes at once. The second turns into the first (by a copy) when it
is written to or truncated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protos.containerd.events import events_pb2
from supervisord.content.ingest import Ingest, translated
from supervisord.contracts.content import Info, Status
from supervisord.contracts.errors import AlreadyExists, FailedPrecondition, NotFound
from supervisord.contracts.identifiers import check_digest
from supervisord.contracts.scope import Scope

from . import content_rows as rows
from . import labels as label_rules
from . import references

if TYPE_CHECKING:
    from .content import Parts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a writer was asked for; see the contract's ``writer``."""

    scope: Scope
    ref: str
    total: int = 0
    expected: str = ""
    media_type: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What is locked."""
        return (self.scope.namespace, self.ref)


class ContentWriter:
    """Exactly one exists per ref; the store makes it, ``closed`` tells the store that it ended."""

    def __init__(
        self,
        parts: Parts,
        wanted: Wanted,
        row: rows.IngestRow,
        ingest: Ingest | None,
        shared: int | None,
        closed: Callable[[], object],
        updated_at: int = 0,
    ) -> None:
        self._parts = parts
        self._scope = wanted.scope
        self._media_type = wanted.media_type
        self._row = row
        self._ingest = ingest
        self._shared = shared or 0
        self._closed = closed
        self._ended = False
        self._over = asyncio.Event()
        self._lock = asyncio.Lock()
        self._updated_at = updated_at or time.time_ns()

    @property
    def status(self) -> Status:
        """How far it is."""
        offset = self._shared if self._ingest is None else self._ingest.offset
        return self._row.status(offset, self._updated_at)

    def digest(self) -> str:
        """The digest of all bytes so far."""
        return self._row.expected if self._ingest is None else self._ingest.digest()

    async def write(self, data: bytes | memoryview) -> None:
        """Appends. Raises ResourceExhausted, Unknown, FailedPrecondition once ended."""
        ingest = self._ingest
        if ingest is None or self._ended:
            if not data:
                return
            ingest = await self._own_bytes()
        await ingest.write(data)
        self._updated_at = time.time_ns()

    async def settle(self) -> None:
        """Waits until all bytes so far are in the file. Raises as ``write`` does."""
        if self._ingest is not None and not self._ended:
            await self._ingest.settle()

    async def truncate(self, size: int) -> None:
        """Drops all bytes from ``size`` on. Raises FailedPrecondition beyond the end."""
        if size < 0 or size > self.status.offset:
            raise FailedPrecondition(
                f"ref {self._row.ref} has {self.status.offset} bytes: cannot be cut at {size}"
            )
        ingest = await self._own_bytes(copied=size > 0)
        await ingest.truncate(size)
        self._updated_at = time.time_ns()

    async def commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        """Ends the ingest and publishes /content/create.

        Raises FailedPrecondition on a mismatch (the ingest stays), AlreadyExists (it is dropped),
        InvalidArgument for labels or the digest."""
        kept = label_rules.checked(labels, "labels")
        if expected:
            check_digest(expected, "expected")
        return await self._parts.owner.shielded(self._commit(size, expected, kept), "commit")

    async def close(self) -> None:
        """Unlocks the ref; what was not committed stays to be resumed."""
        await self._parts.owner.shielded(self._close(), "close")

    async def cut(self) -> None:
        """Ends the writer because its ingest is dropped."""
        await self._close(durable=False)

    async def _close(self, *, durable: bool = True) -> None:
        async with self._lock:
            await self._end(durable=durable)

    async def _end(self, *, durable: bool = False) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            if self._ingest is not None:
                at = self._updated_at if self._ingest.offset else 0
                await self._ingest.close(durable=durable, updated_at=at)
        finally:
            self._closed()
            self._over.set()

    async def over(self, seconds: float) -> None:
        """Waits until the ref is unlocked, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    def _check_open(self) -> None:
        if self._ended:
            raise FailedPrecondition(f"ref {self._row.ref}: the writer is closed")

    async def _own_bytes(self, *, copied: bool = True) -> Ingest:
        """The ingest, for which the shared blob is copied if its bytes are wanted."""
        async with self._lock:
            self._check_open()
            if self._ingest is None:
                self._ingest = await self._parts.owner.shielded(self._unshare(copied), "copy")
            return self._ingest

    async def _unshare(self, copied: bool) -> Ingest:
        files, row = self._parts.files, self._row
        path = files.ingest_path(row.file)
        if copied:
            try:
                await asyncio.to_thread(shutil.copyfile, files.blob_path(row.expected), path)
            except OSError as error:
                raise translated(error) from error
        algorithm = row.expected.partition(":")[0]
        ingest = await Ingest.open(path, algorithm, self._parts.executor, self._parts.behind)
        try:
            await self._parts.commits.write(
                lambda c: rows.forget_expected(c, self._scope.namespace, row.ref)
            )
        except BaseException:
            await ingest.close()
            raise
        self._parts.removals.poke()  # its own namespace may have deleted the blob meanwhile
        self._row = replace(row, expected="")
        return ingest

    async def _commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        async with self._lock:
            self._check_open()
            if self._ingest is None:
                digest, actual = self._row.expected, self._shared
            else:
                algorithm = expected.partition(":")[0] or self._ingest.digest().partition(":")[0]
                await self._ingest.settle()
                digest = await self._ingest.digest_as(algorithm)
                actual = self._ingest.offset
            if size not in (0, actual):
                raise FailedPrecondition(
                    f'"{self._row.ref}" failed size validation: {actual} != {size}: '
                    "failed precondition"
                )
            if expected not in ("", digest):
                raise FailedPrecondition(
                    f"unexpected commit digest {digest}, expected {expected}: failed precondition"
                )
            async with self._parts.blob_locks.hold(digest):
                made = await self._appear(digest, actual, labels)
            await self._end()
        if made is None:
            raise AlreadyExists(f"content {digest}: already exists")
        event = events_pb2.ContentCreate(digest=digest, size=made.size, mediaType=self._media_type)
        self._parts.commits.publish(self._scope.namespace, "/content/create", event)
        return made

    async def _appear(self, digest: str, size: int, labels: Mapping[str, str]) -> Info | None:
        """File, then row. None if the namespace has the blob; the ingest is gone then too."""
        files, number = self._parts.files, self._row.file
        own = self._ingest is not None
        new = False
        if self._ingest is not None:
            new = await self._ingest.sync(lambda: files.publish(number, digest, size))

        def record(connection: sqlite3.Connection) -> Info | None:
            scope, ref = self._scope, self._row.ref
            if rows.ingest(connection, scope.namespace, ref) is None:
                raise NotFound(f"reference {ref}: not found")
            made = rows.insert(connection, scope.namespace, digest, size, labels)
            rows.delete_ingest(connection, scope.namespace, ref)
            references.release(connection, scope, references.Node(references.INGESTS, ref))
            references.hold(connection, scope, references.Node(references.CONTENT, digest))
            return made

        try:
            made = await self._parts.commits.write(record)
        except BaseException:
            if new:
                await self._unpublish(digest)
            raise
        if own:
            self._parts.owner.spawn(self._finish(digest), "finish")
        return made

    async def _finish(self, digest: str) -> None:
        number = self._row.file
        try:
            await asyncio.to_thread(self._parts.files.finish, number, digest)
        except OSError as error:
            # The blob is there; the file of the ingest goes at the next start.
            log.warning("ingest %d of %s: %s", number, digest, error)

    async def _unpublish(self, digest: str) -> None:
        """The row could not be written: the file goes, unless it is somebody's. The lock of the
        digest is held."""
        known = self._parts.commits.read(
            lambda c: c.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone()
        )
        if known is None:
            await asyncio.to_thread(self._parts.files.remove_blob, digest)
