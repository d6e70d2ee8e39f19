"""What is done to a mount before it is made: places filled in, directories and file systems made.

Directories and images are made below folders that the manager was given, whatever symlinks say.
Options that begin with ``X-containerd.mkdir.`` and ``X-containerd.mkfs.`` are used up here.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from supervisord.aio import command
from supervisord.aio.locks import KeyedLock
from supervisord.contracts.errors import InvalidArgument, ResourceExhausted, Unknown
from supervisord.contracts.mounts import ActiveMount
from supervisord.contracts.sizes import in_bytes
from supervisord.contracts.snapshots import Mount
from supervisord.linux.openat import open_in_root

from .template import filled

_MKDIR = "X-containerd.mkdir."
_MKFS = "X-containerd.mkfs."
_MKFS_SECONDS = 600.0
_formatting = KeyedLock()
_FORMATS = {"ext2": "-U", "ext3": "-U", "ext4": "-U", "xfs": "-m"}
_FULL = (errno.ENOSPC, errno.EDQUOT)


async def prepared(
    prefix: str, mount: Mount, active: Sequence[ActiveMount], roots: Sequence[str]
) -> Mount:
    """The mount after one preparation. Raises InvalidArgument, NotFound (no program),
    ResourceExhausted, Unknown."""
    if prefix == "format":
        return Mount(
            mount.type,
            filled(mount.source, active),
            tuple(filled(option, active) for option in mount.options),
            filled(mount.target, active),
        )
    try:
        if prefix == "mkdir":
            return await asyncio.to_thread(_mkdir, mount, roots)
        return await _mkfs(mount, roots)
    except OSError as error:
        kind = ResourceExhausted if error.errno in _FULL else Unknown
        raise kind(f"mount: {prefix}: {mount.source}: {error.strerror}") from error


# Directories --------------------------------------------------------------------------------


def _mkdir(mount: Mount, roots: Sequence[str]) -> Mount:
    kept: list[str] = []
    for option in mount.options:
        if not option.startswith(_MKDIR):
            kept.append(option)
            continue
        key, _, value = option.removeprefix(_MKDIR).partition("=")
        path, *rest = value.split(":")
        if key != "path" or len(rest) not in (0, 1, 3) or not path:
            raise InvalidArgument(f"mount: invalid mkdir option {option!r}")
        mode = _number(rest[0], 8, option) if rest else 0o700
        owner = [_number(each, 10, option) for each in rest[1:]]
        if mode & ~0o777:
            raise InvalidArgument(f"mount: {option!r}: invalid mode {mode:o}")
        _make_folder(path, mode, owner, roots)
    return replace(mount, options=tuple(kept))


def _make_folder(path: str, mode: int, owner: Sequence[int], roots: Sequence[str]) -> None:
    folder, name = _inside(path, roots)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(name, flags, dir_fd=folder)
        try:
            if owner:
                os.fchown(made, *owner)
            os.fchmod(made, mode)
        finally:
            os.close(made)
    finally:
        os.close(folder)


def _number(text: str, base: int, option: str) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise InvalidArgument(f"mount: invalid mkdir option {option!r}: {text!r} is no number")
    return number


# File systems -------------------------------------------------------------------------------


async def _mkfs(mount: Mount, roots: Sequence[str]) -> Mount:
    values = {"fs": "ext4", "size": "", "uuid": ""}
    kept: list[str] = []
    for option in mount.options:
        if not option.startswith(_MKFS):
            kept.append(option)
            continue
        key, _, value = option.removeprefix(_MKFS).partition("=")
        if key not in values:
            raise InvalidArgument(f"mount: unknown mount option {option!r}")
        values[key] = value
    if values["fs"] not in _FORMATS:
        raise InvalidArgument(f"mount: unsupported filesystem {values['fs']!r}")
    size = in_bytes(values["size"], f"{_MKFS}size") if values["size"] else 0
    if not size:
        raise InvalidArgument(f"mount: mkfs requires {_MKFS}size option")
    async with _formatting.hold(os.path.normpath(mount.source)):
        folder, name = await asyncio.to_thread(_inside, mount.source, roots)
        try:
            if not await asyncio.to_thread(_exists, folder, name):
                await _format(folder, name, size, values["fs"], values["uuid"])
        finally:
            os.close(folder)
    return replace(mount, options=tuple(kept))


async def _format(folder: int, name: str, size: int, kind: str, uuid: str) -> None:
    """Under another name first: a file of the right name has a whole file system."""
    making = f".{name}.new"
    identity = [_FORMATS[kind], f"uuid={uuid}" if kind == "xfs" else uuid] if uuid else []
    try:
        await asyncio.to_thread(_lay, folder, making, size)
        real = Path(f"/proc/self/fd/{folder}").readlink()  # the program has not our descriptors
        arguments = [f"mkfs.{kind}", "-q", *identity, f"{real}/{making}"]
        result = await command.run(arguments, seconds=_MKFS_SECONDS)
        if result.status:
            raise Unknown(f"mount: {arguments[0]}: {result.last_words}")
        await asyncio.to_thread(os.rename, making, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(making, dir_fd=folder)
        raise


def _lay(folder: int, name: str, size: int) -> None:
    with suppress(FileNotFoundError):  # of a try that was interrupted
        os.unlink(name, dir_fd=folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o640, dir_fd=folder)
    try:
        os.truncate(fd, size)
    finally:
        os.close(fd)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _inside(path: str, roots: Sequence[str]) -> tuple[int, str]:
    """The open folder of ``path`` and its name there, looked up inside one of the roots.

    Raises InvalidArgument where none of them holds it, OSError."""
    normal = os.path.normpath(path)
    for root in roots:
        if normal.startswith(f"{root}/"):
            below = Path(normal).relative_to(root)
            opened = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                parent = os.fsencode(str(below.parent))
                return open_in_root(opened, parent, os.O_RDONLY | os.O_DIRECTORY), below.name
            finally:
                os.close(opened)
    raise InvalidArgument(f"mount: no root for {path!r} configured")
