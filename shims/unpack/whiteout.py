"""Whiteouts: how a layer says that something of the layers below is gone.

``.wh.NAME`` deletes NAME, ``.wh..wh..opq`` all that is below in its folder (OCI image layer
specification, "Whiteouts"). They are for layers below: what the same layer brings stays. In the
upper directory of an overlay they become its own marks; in a plain tree they are carried out.
"""

# Plain os calls, on bytes.
# ruff: noqa: PTH108
from __future__ import annotations

import os
import stat
from typing import Protocol

from supervisord.contracts.errors import InvalidArgument
from supervisord.linux.trees import remove_tree

from .paths import join

PREFIX = b".wh."
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"


class Whiteouts(Protocol):
    """What becomes of them."""

    def delete(self, folder: bytes, base: bytes, owner: tuple[int, int]) -> None:
        """``base`` in ``folder`` is gone from the layers below."""
        ...

    def opaque(self, folder: bytes) -> None:
        """All in ``folder`` is gone from the layers below."""
        ...


def target(base: bytes) -> bytes:
    """The name that a whiteout deletes. Raises InvalidArgument when it leaves its folder."""
    name = base[len(PREFIX) :]
    if name in (b"", b".", b".."):
        raise InvalidArgument(f"layer: {base!r} is not a valid whiteout name")
    return name


def is_mark(found: os.stat_result) -> bool:
    """Whether it is what an overlay takes for a deleted file: a character device 0/0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class OverlayMarks:
    """Writes the marks of overlayfs; ``namespace`` is ``trusted`` or ``user``. ``brought`` has
    the paths that this layer brought."""

    def __init__(self, brought: set[bytes], namespace: str = "trusted") -> None:
        self._brought = brought
        self._attribute = f"{namespace}.overlay.opaque"

    def delete(self, folder: bytes, base: bytes, owner: tuple[int, int]) -> None:
        path = join(folder, base)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(found.st_mode) and path in self._brought:
                self.opaque(path)
            if is_mark(found) or path in self._brought:
                return  # what stands here hides what is below
            remove(path, found)
        os.mknod(path, stat.S_IFCHR, 0)
        os.chown(path, *owner)

    def opaque(self, folder: bytes) -> None:
        os.setxattr(folder, self._attribute, b"y")


class Deletions:
    """Carries them out in a plain tree, sparing what this layer brought."""

    def __init__(self, brought: set[bytes]) -> None:
        self._brought = brought

    def delete(self, folder: bytes, base: bytes, owner: tuple[int, int]) -> None:
        self._delete(join(folder, base))

    def opaque(self, folder: bytes) -> None:
        with os.scandir(folder) as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            self._delete(path)

    def _delete(self, path: bytes) -> None:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if path not in self._brought:
            remove(path, found)
        elif stat.S_ISDIR(found.st_mode):
            self.opaque(path)


def remove(path: bytes, found: os.stat_result) -> None:
    """Removes a file or a whole folder."""
    if stat.S_ISDIR(found.st_mode):
        remove_tree(path)
    else:
        os.unlink(path)
