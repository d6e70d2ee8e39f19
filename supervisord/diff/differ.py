"""The Differ: applies layers to mounts, and writes the differences of mounts as layers.

Both are done by unpack workers, one per layer, so that the event loop never waits for a disk and a
hostile layer meets a chroot. Here are media types, content, labels and descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from supervisord.contracts import content
from supervisord.contracts.content import ContentStore, Writer
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.workers import WorkerSpawner

from . import media, work
from .feed import Feed, feeding
from .processors import BUILT_IN, Processor, chain, opened

DEFAULT_LIMIT = 1 << 40
DEFAULT_ENTRIES = 1 << 22
UNCOMPRESSED = "containerd.io/uncompressed"


class Differ:
    """``state`` is a directory for mount points (every worker mounts in a namespace of its own, so
    all share them); ``limit`` is the most bytes that a layer may have uncompressed, and ``entries``
    the most entries, 0 for any; ``processors`` are asked in their order what they accept."""

    def __init__(
        self,
        content: ContentStore,
        workers: WorkerSpawner,
        state: Path | str,
        *,
        limit: int = DEFAULT_LIMIT,
        entries: int = DEFAULT_ENTRIES,
        processors: Sequence[Processor] = BUILT_IN,
    ) -> None:
        self._content = content
        self._workers = workers
        self._state = Path(state)
        self._limit = limit
        self._entries = entries
        self._processors = processors

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        with ExitStack() as undo:
            arguments, payloads = await self._application(
                descriptor.media_type, mounts, options, undo
            )
            reader = await self._content.reader(scope, descriptor.digest)
            undo.callback(reader.close)
            outcome = await work.run(self._workers, arguments, [reader.fileno(), *payloads])
        return Descriptor(media.OCI, outcome.digest, outcome.size)

    @asynccontextmanager
    async def applying(
        self, media_type: str, mounts: Sequence[Mount], options: ApplyOptions
    ) -> AsyncIterator[Feed]:
        """See contracts.diff."""
        with ExitStack() as undo:
            arguments, payloads = await self._application(media_type, mounts, options, undo)
            async with feeding(self._workers, arguments, payloads) as feed:
                yield feed

    async def _application(
        self,
        media_type: str,
        mounts: Sequence[Mount],
        options: ApplyOptions,
        undo: ExitStack,
    ) -> tuple[Mapping[str, object], Sequence[int]]:
        """The arguments of a worker that applies a layer, and its processors' payloads, which
        ``undo`` closes."""
        steps, inner = chain(self._processors, media_type)
        compression = media.reading(inner)
        if not mounts:
            raise InvalidArgument("mounts: must not be empty")
        payloads = []
        descriptions = []
        for processor, taken in steps:
            payload = options.payloads.get(processor.id)
            if payload is not None:
                payloads.append(undo.enter_context(opened(payload)))
            descriptions.append({**processor.description(taken), "payload": payload is not None})
        arguments = {
            "operation": "apply",
            "compression": compression,
            "processors": descriptions,
            "mounts": work.describe(mounts),
            "mountpoint": await self._mountpoint("target"),
            "limit": self._limit,
            "entries": self._entries,
            "sync": options.sync_fs,
        }
        return arguments, payloads

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        media_type, compression = media.writing(options.media_type)
        if not upper:
            raise InvalidArgument("right: mounts must not be empty")
        arguments = {
            "operation": "diff",
            "compression": compression,
            "lower": work.describe(lower),
            "upper": work.describe(upper),
            "mountpoints": [await self._mountpoint("lower"), await self._mountpoint("upper")],
            "epoch": options.source_date_epoch,
        }
        async with AsyncExitStack() as undo:
            ref = options.ref or f"diff-{time.time_ns()}-{secrets.token_hex(4)}"
            writer = await self._content.writer(scope, ref, media_type=media_type)
            if not options.ref:
                undo.push_async_callback(self._abort, scope, ref)
            undo.push_async_callback(writer.close)
            if writer.status.offset:
                await writer.truncate(0)
            outcome = await self._compute(arguments, writer)
            labels = dict(options.labels)
            if compression != "none":
                labels[UNCOMPRESSED] = outcome.digest
            info = await self._committed(scope, writer, labels)
        return Descriptor(media_type, info.digest, info.size)

    async def _compute(self, arguments: Mapping[str, object], writer: Writer) -> work.Outcome:
        async with (
            work.flow() as (layer, output),
            work.started(self._workers, arguments, [output.fd]) as results,
        ):
            output.close()
            while piece := await layer.read():
                await writer.write(piece)
            return await results.outcome()

    async def _committed(
        self, scope: Scope, writer: Writer, labels: Mapping[str, str]
    ) -> content.Info:
        digest = writer.digest()
        try:
            return await writer.commit(0, digest, labels)
        except AlreadyExists:
            info = await self._content.info(scope, digest)
        missing = UNCOMPRESSED in labels and UNCOMPRESSED not in info.labels
        if not missing:
            return info
        wanted = content.Info(digest, labels={UNCOMPRESSED: labels[UNCOMPRESSED]})
        return await self._content.update(scope, wanted, [f"labels.{UNCOMPRESSED}"])

    async def _abort(self, scope: Scope, ref: str) -> None:
        """Drops the ingest, if it was not committed."""
        with contextlib.suppress(NotFound):
            await self._content.abort(scope, ref)

    async def _mountpoint(self, name: str) -> str:
        path = self._state / name
        await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
        return str(path)
