"""Mounts what a snapshotter answers, as the daemon does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from supervisord.contracts.snapshots import Mount
from supervisord.linux.mount import mount_all, unmount_all


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mounts all of them on ``target``, made if need be; unmounts at the end."""
    target.mkdir(parents=True, exist_ok=True)
    mount_all(mounts, str(target))
    try:
        yield target
    finally:
        unmount_all(str(target))


@asynccontextmanager
async def mounted_aside(mounts: Sequence[Mount], target: Path) -> AsyncIterator[Path]:
    """As ``mounted``, in threads."""
    target.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(mount_all, mounts, str(target))
    try:
        yield target
    finally:
        await asyncio.to_thread(unmount_all, str(target))
