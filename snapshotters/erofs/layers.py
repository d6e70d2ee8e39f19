"""Layers of the erofs snapshotter that are mounted: each once, for all snapshots above it.

So all containers share what is cached of a layer, and clients get plain overlays. A mount is made
when the first snapshot needs it and goes with its layer, or when the snapshotter closes: overlays
hold on to the layers that they were made of, wherever else those are mounted. Blocking.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from supervisord.contracts.snapshots import Mount
from supervisord.linux.mount import mount_all, mounted, unmount_all

FOLDER = "mnt"


class Layers:
    """The mounts of the snapshots in ``folder``, by their ids."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def place(self, id: int) -> str:
        """Where a layer is mounted, if it is."""
        return f"{self._folder}/{id}/{FOLDER}"

    def mount(self, images: Sequence[tuple[int, str]]) -> list[str]:
        """Mounts those images that are not mounted; answers where they are. Raises Error,
        OSError."""
        with self._lock:
            for id, image in images:
                place = self.place(id)
                if not mounted(place):
                    Path(place).mkdir(mode=0o700, exist_ok=True)
                    mount_all([image_mount(image)], place)
        return [self.place(id) for id, _ in images]

    def unmount(self, name: str) -> None:
        """Raises Unavailable."""
        with self._lock:
            unmount_all(f"{self._folder}/{name}/{FOLDER}")

    def close(self) -> None:
        """Raises Unavailable."""
        with self._lock:
            for folder in Path(self._folder).iterdir():
                place = str(folder / FOLDER)
                if mounted(place):
                    unmount_all(place)


def image_mount(image: str) -> Mount:
    """How a layer's image is mounted, by a device if the kernel needs one."""
    return Mount("erofs", image, ("ro", "loop"))
