"""The Differ: applies layers to mounts, and writes the differences of mounts as layers.

Both are done by unpack workers, one per layer, so that the event loop never waits for a disk and a
hostile layer meets a chroot. Here are media types, content, labels and descriptors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from supervisord.contracts.content import ContentStore
from supervisord.contracts.diff import ApplyOptions, DiffOptions
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.workers import WorkerSpawner

from . import media, work

DEFAULT_LIMIT = 1 << 40


class Differ:
    """``state`` is a directory for mount points (every worker mounts in a namespace of its own, so
    all share them); ``limit`` is the most bytes that a layer may have uncompressed, 0 for any."""

    def __init__(
        self,
        content: ContentStore,
        workers: WorkerSpawner,
        state: Path | str,
        *,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        self._content = content
        self._workers = workers
        self._state = Path(state)
        self._limit = limit

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        compression = media.reading(descriptor.media_type)
        if not mounts:
            raise InvalidArgument("mounts: must not be empty")
        reader = await self._content.reader(scope, descriptor.digest)
        try:
            arguments = {
                "operation": "apply",
                "compression": compression,
                "mounts": work.describe(mounts),
                "mountpoint": await self._mountpoint("target"),
                "limit": self._limit,
                "sync": options.sync_fs,
            }
            outcome = await work.run(self._workers, arguments, [reader.fileno()])
        finally:
            reader.close()
        return Descriptor(media.OCI, outcome.digest, outcome.size)

    async def _mountpoint(self, name: str) -> str:
        path = self._state / name
        await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
        return str(path)
