"""Progress of a transfer: a tree of names, told at a bounded rate.

Words and shape are containerd's, so that its clients draw it: an image's name is the root, below
it are indexes and manifests, below those configs and layers. Each is ``waiting``, then
``downloading`` (``uploading``), then ``complete`` or ``already exists``; a layer that is unpacked
is ``extracting``, then ``extracted``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .oci.documents import Descriptor
from .oci.names import ref_of

_EVERY = 0.1

WAITING = "waiting"
DOWNLOADING = "downloading"
UPLOADING = "uploading"
COMPLETE = "complete"
EXISTS = "already exists"
EXTRACTING = "extracting"
EXTRACTED = "extracted"


@dataclass(frozen=True, slots=True)
class Progress:
    """One report; ``progress`` of ``total`` bytes."""

    event: str
    name: str = ""
    parents: Sequence[str] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Report = Callable[[Progress], Awaitable[None]]


class Tracker:
    """What a transfer does, told to ``report``: changes of state at once, numbers now and then.

    Without a report it does nothing. ``run`` tells, until ``close``."""

    def __init__(self, root: str, report: Report | None) -> None:
        self._root = root
        self._report = report
        self._parents: dict[str, tuple[str, ...]] = {}
        self._last: dict[str, Progress] = {}
        self._changed: dict[str, list[Progress]] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def say(self, event: str, name: str = "", descriptor: Descriptor | None = None) -> None:
        """Something about the transfer as a whole."""
        if self._report is not None:
            self._add(f"\0{event}\0{name}", Progress(event, name, descriptor=descriptor))

    def children(self, parent: Descriptor | None, children: Sequence[Descriptor]) -> None:
        """Makes nodes known: they wait. ``parent`` None is the root."""
        if self._report is None:
            return
        above = self._root if parent is None else ref_of(parent)
        for child in children:
            known = self._parents.get(child.digest, ())
            if above not in known:
                self._parents[child.digest] = (*known, above)
            if not known:
                self.set(WAITING, child, 0)

    def set(self, event: str, descriptor: Descriptor, progress: int | None = None) -> None:
        """The state of a node; ``progress`` None is all of it."""
        if self._report is None:
            return
        done = descriptor.size if progress is None else progress
        parents = self._parents.get(descriptor.digest) or (self._root,)
        self._add(
            descriptor.digest,
            Progress(event, ref_of(descriptor), parents, done, descriptor.size, descriptor),
        )

    def _add(self, key: str, progress: Progress) -> None:
        """Numbers replace numbers that nobody was told yet; a change of state is kept."""
        last = self._last.get(key)
        if last == progress:
            return
        self._last[key] = progress
        queued = self._changed.setdefault(key, [])
        if queued and queued[-1].event == progress.event:
            queued[-1] = progress
        else:
            queued.append(progress)
        self._wake.set()

    async def run(self) -> None:
        """Tells what changes, until it is closed and all is told. Raises what the report raises."""
        report = self._report
        while report is not None:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for queued in changed.values():
                for progress in queued:
                    await report(progress)
            if self._closed and not self._changed:
                return
            if not self._closed:
                await asyncio.sleep(_EVERY)

    def close(self) -> None:
        """There is no more; ``run`` ends."""
        self._closed = True
        self._wake.set()
