"""Layers that are images of erofs already: put into a snapshot of the erofs snapshotter as they
are.

That snapshotter marks its folders; mounts of any other are refused as Unimplemented, and so are all
other layers, so that the next differ has its turn: what is unpacked becomes an image at commit.
``application/vnd.erofs.layer.v1`` is an image, with ``+zstd`` a compressed one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from supervisord.contracts.content import ContentStore
from supervisord.contracts.diff import Application, ApplyOptions, DiffOptions
from supervisord.contracts.errors import Unimplemented, Unknown
from supervisord.contracts.images import Descriptor
from supervisord.contracts.scope import Scope
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.workers import WorkerSpawner

from . import work

LAYERS = "application/vnd.erofs.layer"

_MARK = ".erofslayer"
_IMAGE = "layer.erofs"


class ErofsDiffer:
    """``limit`` is the most bytes of an image, 0 for any."""

    def __init__(self, content: ContentStore, workers: WorkerSpawner, *, limit: int) -> None:
        self._content = content
        self._workers = workers
        self._limit = limit

    @asynccontextmanager
    async def applying(
        self, media_type: str, mounts: Sequence[Mount], options: ApplyOptions
    ) -> AsyncIterator[Application]:
        """See contracts.diff. Images are taken from the content store only."""
        raise Unimplemented(f"media type {media_type!r}: not applied from a stream")
        yield

    async def apply(
        self,
        scope: Scope,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        options: ApplyOptions,
    ) -> Descriptor:
        """See contracts.diff."""
        base, _, suffix = descriptor.media_type.partition("+")
        if not base.startswith(LAYERS) or suffix not in ("", "zstd"):
            raise Unimplemented(f"media type {descriptor.media_type!r}: is no layer of erofs")
        folder = await asyncio.to_thread(_folder_of, mounts)
        making = folder / f".{_IMAGE}.{secrets.token_hex(4)}"
        reader = await self._content.reader(scope, descriptor.digest)
        try:
            arguments = {
                "operation": "inflate",
                "compression": "auto" if suffix else "none",
                "limit": self._limit,
            }
            with await asyncio.to_thread(making.open, "xb") as out:
                fds = [reader.fileno(), out.fileno()]
                outcome = await work.run(self._workers, arguments, fds)
            await asyncio.to_thread(making.rename, folder / _IMAGE)
        except OSError as error:
            raise Unknown(f"layer: {error.strerror}") from error
        finally:
            reader.close()
            making.unlink(missing_ok=True)
        return Descriptor(base, outcome.digest or descriptor.digest, outcome.size)

    async def diff(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        options: DiffOptions,
    ) -> Descriptor:
        """See contracts.diff. Images are not computed."""
        raise Unimplemented(f"unsupported diff media type: {options.media_type}")


def _folder_of(mounts: Sequence[Mount]) -> Path:
    """The snapshot's folder. Raises Unimplemented where it is none of the erofs snapshotter."""
    source = ""
    if mounts and mounts[0].type.startswith("mkfs/"):
        source = mounts[0].source
    elif mounts:
        last = mounts[-1]
        kind = last.type.rpartition("/")[2]
        if kind in ("bind", "erofs"):
            source = last.source
        elif kind == "overlay":
            uppers = [each for each in last.options if each.startswith("upperdir=")]
            source = uppers[-1].removeprefix("upperdir=") if uppers else ""
    folder = Path(source).parent
    if not source or not (folder / _MARK).is_file():
        raise Unimplemented("mounts: are of no snapshot that takes images of erofs")
    return folder
