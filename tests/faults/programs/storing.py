"""Works with the stores of a daemon, in one process, and says before and after each step what it
changes: for a recorder of system calls, that replays what a power failure could have left.

``python storing.py ROOT NOTES``. NOTES gets a JSON line before (``begins``) and after (``done``)
each step, with what is there after it: blobs, images, snapshots.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from snapshotters.native import NativeSnapshotter
from snapshotters.overlayfs import OverlaySnapshotter
from supervisord.contracts.images import Descriptor, Image
from supervisord.contracts.scope import Scope
from supervisord.metadata.store import Metadata

SCOPE = Scope("power")
FILE = b"what the layer has\n" * 700
ROOT = {"containerd.io/gc.root": "1"}


async def opened(root: Path) -> tuple[Metadata, list[Any]]:
    """The stores below a root, and the snapshotters, to be closed after them."""
    overlay = await OverlaySnapshotter.open(root / "overlayfs")
    native = await NativeSnapshotter.open(root / "native")
    metadata = await Metadata.open(
        root / "metadata",
        snapshotters={"overlayfs": overlay, "native": native},
        content_path=root / "content",
    )
    return metadata, [overlay, native]


class Steps:
    """What is there by now; each step notes it."""

    def __init__(self, notes: int) -> None:
        self._notes = notes
        self.there: dict[str, list[str]] = {
            "blobs": [],
            "images": [],
            "overlayfs": [],
            "native": [],
        }

    async def step(
        self,
        work: Awaitable[Any],
        *,
        adds: tuple[str, str] = ("", ""),
        drops: tuple[str, str] = ("", ""),
    ) -> None:
        before = {kind: list(names) for kind, names in self.there.items()}
        for kind, name in (adds,):
            if kind:
                self.there[kind].append(name)
        for kind, name in (drops,):
            if kind:
                self.there[kind].remove(name)
        self._note({"begins": self.there, "from": before})
        await work
        self._note({"done": self.there})

    def _note(self, line: dict[str, Any]) -> None:
        os.write(self._notes, json.dumps(line).encode() + b"\n")


async def write(metadata: Metadata, ref: str, data: bytes) -> None:
    writer = await metadata.content.writer(SCOPE, ref)
    try:
        await writer.write(data[: len(data) // 2])
        await writer.write(data[len(data) // 2 :])
        await writer.commit(len(data), "", ROOT)
    finally:
        await writer.close()


def unpack(source: str) -> None:
    """As a worker does it: nothing is synced."""
    folder = Path(source, "folder")
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(FILE)


async def layer(metadata: Metadata, kind: str, steps: Steps) -> None:
    store = metadata.snapshots[kind]
    await steps.step(store.prepare(SCOPE, "a", "", ROOT), adds=(kind, "a"))
    (mount,) = await store.mounts(SCOPE, "a")
    await asyncio.to_thread(unpack, mount.source)
    steps.there[kind].remove("a")
    await steps.step(store.commit(SCOPE, "layer", "a", ROOT), adds=(kind, "layer"))
    await steps.step(store.prepare(SCOPE, "rw", "layer", ROOT), adds=(kind, "rw"))


async def main(root: Path, notes: int) -> None:
    steps = Steps(notes)
    metadata, snapshotters = await opened(root)
    digests = []
    for number in range(3):
        data = b"%d" % number * 9000
        digests.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
        await steps.step(write(metadata, f"ref-{number}", data), adds=("blobs", digests[-1]))
    for kind in ("overlayfs", "native"):
        await layer(metadata, kind, steps)
    image = Image("image", Descriptor("type", digests[0], 9000))
    await steps.step(metadata.images.create("power", image), adds=("images", "image"))
    await steps.step(metadata.content.delete(SCOPE, digests[1]), drops=("blobs", digests[1]))
    for kind in ("overlayfs", "native"):
        store = metadata.snapshots[kind]
        await steps.step(store.remove(SCOPE, "rw"), drops=(kind, "rw"))
    again = b"1" * 9000
    await steps.step(write(metadata, "again", again), adds=("blobs", digests[1]))
    await metadata.garbage.sweep()
    await metadata.close()
    for snapshotter in snapshotters:
        await snapshotter.close()


if __name__ == "__main__":
    descriptor = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(main(Path(sys.argv[1]), descriptor))
