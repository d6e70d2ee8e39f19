"""The handlers that come with the daemon: files as block devices, and images of erofs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.mounts import ActiveMount
from supervisord.contracts.snapshots import Mount
from supervisord.linux import loop
from supervisord.linux.mount import mount_all, mount_points, unmount_all

_VERITY = "X-containerd.dmverity="


class KernelHandler:
    """What the kernel mounts by itself; for types that have no handler."""

    async def mount(self, mount: Mount, target: str, active: Sequence[ActiveMount]) -> ActiveMount:
        """See the contract."""
        await asyncio.to_thread(_mount, mount, target)
        return ActiveMount(mount, time.time_ns(), target)

    async def unmount(self, target: str) -> None:
        """See the contract."""
        await asyncio.to_thread(_unmount, target)


class ErofsHandler(KernelHandler):
    """Images of erofs, with or without the option ``loop``."""

    async def mount(self, mount: Mount, target: str, active: Sequence[ActiveMount]) -> ActiveMount:
        """See the contract."""
        if any(option.startswith(_VERITY) for option in mount.options):
            raise InvalidArgument(f"mount {mount.source}: dm-verity is not supported here")
        made = mount
        if "loop" not in mount.options and await asyncio.to_thread(os.path.isfile, mount.source):
            made = Mount(mount.type, mount.source, (*mount.options, "loop"), mount.target)
        return await super().mount(made, target, active)


class LoopHandler:
    """A file as a block device: ``target`` is a symlink to it. The device is kept for as long,
    whether somebody uses it or not."""

    async def mount(self, mount: Mount, target: str, active: Sequence[ActiveMount]) -> ActiveMount:
        """See the contract."""
        device = await asyncio.to_thread(_attach, mount, target)
        made = Mount(mount.type, device, mount.options, mount.target)
        return ActiveMount(made, time.time_ns(), target)

    async def unmount(self, target: str) -> None:
        """See the contract."""
        await asyncio.to_thread(_let_go, target)


def _mount(mount: Mount, target: str) -> None:
    Path(target).mkdir(mode=0o700)
    try:
        mount_all([mount], target)
    except BaseException:
        Path(target).rmdir()
        raise


def _unmount(target: str) -> None:
    unmount_all(target)
    try:
        Path(target).rmdir()
    except FileNotFoundError:
        return
    except OSError:  # a mount with a target of its own, below
        for point in reversed(mount_points()):
            if point.startswith(f"{target}/"):
                unmount_all(point)
        shutil.rmtree(target)


def _attach(mount: Mount, target: str) -> str:
    fd, device = loop.attach(
        mount.source,
        read_only="ro" in mount.options,
        direct="direct-io" in mount.options,
        mark=_mark(target),
    )
    try:
        Path(target).symlink_to(device)  # first: what a crash leaves is found by it
        loop.keep(fd, True)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(target).unlink()
        raise
    finally:
        os.close(fd)
    return device


def _let_go(target: str) -> None:
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with suppress(OSError):  # it is over nothing any more
            if loop.mark_of(fd) == _mark(target):  # and not somebody else's by now
                loop.keep(fd, False)
        Path(target).unlink()
    finally:
        os.close(fd)


def _mark(target: str) -> str:
    return "supervisord-" + hashlib.sha256(os.fsencode(target)).hexdigest()[:48]
