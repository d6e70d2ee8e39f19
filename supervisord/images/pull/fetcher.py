"""Blobs from a registry into the content store, each once, whoever asks.

What is there is not fetched. What somebody else fetches just now, in whichever namespace, is waited
for, and then only written down. Who fetches may hand the bytes on while they come (``tee``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing

from supervisord.aio.groups import task_group
from supervisord.contracts.content import ContentStore, Writer
from supervisord.contracts.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from supervisord.contracts.scope import Scope

from ..holding import held
from ..oci.documents import Descriptor
from ..oci.names import SOURCE, ref_of
from ..progress import COMPLETE, DOWNLOADING, EXISTS, Tracker
from ..reference import Reference
from ..registry.repository import Repository
from .bytes import blob_bytes
from .limits import Limits

log = logging.getLogger(__name__)

Tee = Callable[[bytes | memoryview], Awaitable[None]]

_LOCKED_SECONDS = 0.2
_BESIDE = "transfer-"
"""Before the usual ref, where a client has that one."""
_MOST_SOURCES = 4096


class Fetcher:
    """All downloads of the daemon."""

    def __init__(
        self,
        content: ContentStore,
        limits: Limits | None = None,
        *,
        ranges: int = 1,
        idle_seconds: float = 30.0,
    ) -> None:
        """``ranges``: parts of one large blob that are on their way at a time. ``idle_seconds``:
        how long a client that writes a blob may bring nothing, until it is not waited for."""
        self._content = content
        self._limits = limits or Limits()
        self._ranges = ranges
        self._idle_seconds = idle_seconds
        self._running: dict[str, asyncio.Future[None]] = {}

    async def document(
        self,
        scope: Scope,
        repository: Repository,
        descriptor: Descriptor,
        limit: int,
        tracker: Tracker,
    ) -> bytes:
        """A manifest, an index or a config, whole. Raises ResourceExhausted above the limit, and
        what fetching raises."""
        if descriptor.size > limit:
            raise ResourceExhausted(
                f"{ref_of(descriptor)}: {descriptor.size} bytes, more than the {limit} allowed"
            )
        await self.blob(scope, repository, descriptor, tracker)
        return await self._content.read_blob(scope, descriptor.digest, limit)

    async def blob(
        self,
        scope: Scope,
        repository: Repository,
        descriptor: Descriptor,
        tracker: Tracker,
        tee: Tee | None = None,
    ) -> bool:
        """Sees to it that the namespace has the blob. True if all of it went through ``tee``.

        Raises DataLoss where the registry sends something else, and what the registry, the
        disk and the store raise; what came so far is kept for the next time."""
        while True:
            if await self._known(scope, repository.reference, descriptor):
                tracker.set(EXISTS, descriptor)
                return False
            running = self._running.get(descriptor.digest)
            if running is None:
                break
            # However it ends: then it is here, or we are the next to try.
            await asyncio.wait([running])
        done = self._running[descriptor.digest] = asyncio.get_running_loop().create_future()
        try:
            return await self._fetch(scope, repository, descriptor, tracker, tee)
        finally:
            del self._running[descriptor.digest]
            done.set_result(None)

    async def _known(self, scope: Scope, reference: Reference, descriptor: Descriptor) -> bool:
        try:
            info = await self._content.info(scope, descriptor.digest)
        except NotFound:
            return False
        if info.size != descriptor.size:
            raise FailedPrecondition(
                f"{descriptor.digest}: has {info.size} bytes, and is said to have {descriptor.size}"
            )
        ref = ref_of(descriptor)
        if not await held(self._content, scope, ref, descriptor.digest, descriptor.size):
            return False
        labels = _source(reference, info.labels)
        if labels != {key: info.labels.get(key) for key in labels}:
            info = type(info)(descriptor.digest, labels=labels)
            await self._content.update(scope, info, [f"labels.{key}" for key in labels])
        return True

    async def _fetch(
        self,
        scope: Scope,
        repository: Repository,
        descriptor: Descriptor,
        tracker: Tracker,
        tee: Tee | None,
    ) -> bool:
        labels = _source(repository.reference, {})
        async with AsyncExitStack() as stack:
            try:
                writer = await self._writer(scope, descriptor)
            except AlreadyExists:
                tracker.set(EXISTS, descriptor)
                return False
            stack.push_async_callback(self._left, scope, writer)
            through = tee is not None and writer.status.offset == 0
            if writer.status.offset > descriptor.size:
                await writer.truncate(0)
            offset = writer.status.offset
            if descriptor.data is None:
                pieces = blob_bytes(
                    repository, descriptor, offset, limits=self._limits, ranges=self._ranges
                )
            else:
                pieces = _embedded(descriptor.data[offset:])
            await stack.enter_async_context(aclosing(pieces))
            async for piece in pieces:
                if tee is not None and through:
                    async with task_group() as group:  # hashed by a thread meanwhile
                        group.spawn(writer.write(piece), "write")
                        await tee(piece)
                else:
                    await writer.write(piece)
                offset += len(piece)
                tracker.set(DOWNLOADING, descriptor, offset)
            await self._commit(scope, writer, descriptor, labels)
        tracker.set(COMPLETE, descriptor)
        return through

    async def _writer(self, scope: Scope, descriptor: Descriptor) -> Writer:
        """Waits while a client has the ref open and brings bytes. One that brings none any more
        keeps its ref, and the blob comes under another. Raises AlreadyExists, and Unavailable
        where that one is open as well."""
        ref = ref_of(descriptor)
        offset, since = -1, time.monotonic()
        while True:
            try:
                return await self._opened(scope, ref, descriptor)
            except Unavailable:
                now, reached = time.monotonic(), await self._offset(scope, ref)
                if reached != offset:
                    offset, since = reached, now
                if now - since >= self._idle_seconds:
                    log.info("%s: a client has it open and writes nothing", ref)
                    return await self._opened(scope, f"{_BESIDE}{ref}", descriptor)
                await asyncio.sleep(_LOCKED_SECONDS)

    async def _opened(self, scope: Scope, ref: str, descriptor: Descriptor) -> Writer:
        return await self._content.writer(
            scope,
            ref,
            total=descriptor.size,
            expected=descriptor.digest,
            media_type=descriptor.media_type,
        )

    async def _offset(self, scope: Scope, ref: str) -> int:
        """How far an ingest is; -1 where it went just now."""
        try:
            return (await self._content.status(scope, ref)).offset
        except NotFound:
            return -1

    async def _left(self, scope: Scope, writer: Writer) -> None:
        """Unlocks the ingest. Without any bytes there is nothing to go on from."""
        status = writer.status
        await writer.close()
        if not status.offset:
            with contextlib.suppress(NotFound):  # it was committed
                await self._content.abort(scope, status.ref)

    async def _commit(
        self, scope: Scope, writer: Writer, descriptor: Descriptor, labels: Mapping[str, str]
    ) -> None:
        try:
            await writer.commit(descriptor.size, descriptor.digest, labels)
        except AlreadyExists:
            return
        except FailedPrecondition as error:
            # What came is not what was announced: nobody can go on from it.
            ref = writer.status.ref
            await writer.close()
            await self._content.abort(scope, ref)
            raise DataLoss(
                f"{ref_of(descriptor)}: the registry sent other bytes: {error}"
            ) from error


async def _embedded(data: bytes) -> AsyncGenerator[bytes, None]:
    """What the document has of the blob, which is all."""
    yield data


def _source(reference: Reference, known: Mapping[str, str]) -> dict[str, str]:
    """The label that says from which repositories a blob came, for pushes to the same registry."""
    key = f"{SOURCE}.{reference.host}"
    names = [name for name in known.get(key, "").split(",") if name]
    if reference.repository not in names:
        names.append(reference.repository)
    value = ",".join(names)
    return {key: value} if len(key) + len(value) <= _MOST_SOURCES else {}
