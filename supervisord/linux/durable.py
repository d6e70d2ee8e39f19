"""Folders whose names survive a power failure: a folder is made in its parent, which has to be
synced before anybody relies on what is in it. Used by whoever keeps something for good.
"""

from __future__ import annotations

import os
from pathlib import Path

_DEPTH = 3


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Makes a folder with its parents, if need be, and sees to it that their names are durable:
    also where they are here already, because whoever made them may have been killed before that.

    Raises OSError. Blocks."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for parent in list(path.absolute().parents)[:_DEPTH]:
        sync_folder(parent)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
