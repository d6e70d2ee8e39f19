"""Mounts: carries out the mounts that snapshotters describe, and takes them away again.

``mount_all`` mounts a list on one target and leaves nothing when it fails; ``unmount_all`` takes
away all that is stacked on a path. Overlay mounts with more layers than fit in one page of
options, and all whose ids are mapped, are those of ``overlay_mount`` and ``idmap``. Blocking.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from supervisord.contracts.errors import Error, InvalidArgument, Unavailable, Unknown

from . import mount_options as opts
from . import syscalls

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOM = 512  # what containerd keeps free of the page
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_ATTR_MOUNT_ROOT = 0x2000
_RESOLVE_IN_ROOT = 0x10
_BUSY_TRIES = 10
_BUSY_PAUSE = 0.02


class MountSpec(Protocol):
    """One mount: contracts.snapshots.Mount, or the protobuf containerd.types.Mount."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


def mount_all(mounts: Sequence[MountSpec], target: str) -> None:
    """Mounts all in order on ``target``, or below it where a mount names a target of its own
    (looked up inside, so that no symlink leads out). On a failure what was mounted is taken away.

    Raises InvalidArgument, Unimplemented (options), Unknown (the kernel refused)."""
    done: list[str] = []
    try:
        for mount in mounts:
            place = _inside(target, mount.target) if mount.target.strip("/") else target
            mount_one(mount, place)
            done.append(place)
    except BaseException:
        for place in reversed(done):
            _detach(place)
        raise


def mount_one(mount: MountSpec, target: str) -> None:
    """One mount on exactly ``target``. Raises as ``mount_all``."""
    options = opts.parse(mount.options)
    if "\0" in mount.source or "\0" in mount.type:
        raise InvalidArgument("mount: type and source must not have a zero byte")
    if options.flags & opts.BIND and options.data:
        raise InvalidArgument(f"mount: option {options.data[0]!r} is not one of a bind mount")
    mounted_here = False
    try:
        flags = options.flags & ~opts.PROPAGATION
        if options.uidmap or options.gidmap:
            flags = 0
            _mount_mapped(mount, target, options)
            mounted_here = True
        elif not options.flags & opts.REMOUNT or options.data:
            _mount_source(mount, target, flags, options)
            mounted_here = True
        if options.flags & opts.PROPAGATION:
            kept = options.flags & (opts.PROPAGATION | opts.REC | opts.SILENT)
            syscalls.mount(None, os.fsencode(target), None, kept, None)
        if flags & opts.BIND and flags & opts.RDONLY:
            syscalls.mount(None, os.fsencode(target), None, flags | opts.REMOUNT, None)
    except OSError as error:
        if mounted_here:
            _detach(target)
        raise _refused(mount, target, error) from error


def _refused(mount: MountSpec, target: str, error: OSError) -> Error:
    """What the kernel's errno says of the request: a malformed one is the caller's fault."""
    where = f"{mount.type or 'bind'} {mount.source!r} on {target!r}"
    if error.errno == errno.ENODEV:
        return InvalidArgument(f"mount {where}: type: the kernel knows no such filesystem")
    if error.errno == errno.EINVAL:
        options = ",".join(mount.options)
        return InvalidArgument(f"mount {where}: options {options!r}: invalid argument")
    if error.errno == errno.ENOENT and mount.type == "overlay":
        folders = [folder for folder in _folders(mount.options) if not Path(folder).is_dir()]
        if folders:
            return Unknown(f"mount {where}: {folders[0]!r} is gone")
    return Unknown(f"mount {where}: {(error.strerror or str(error)).lower()}")


def _folders(options: Sequence[str]) -> list[str]:
    """The folders that an overlay is made of."""
    values = {key: value for key, _, value in (option.partition("=") for option in options)}
    lowers = opts.split_lowerdir(values.get("lowerdir", ""))
    return [each for each in (values.get("upperdir"), values.get("workdir"), *lowers) if each]


def unmount_all(target: str) -> None:
    """Takes away everything stacked on ``target``, lazily where it stays busy; a path that is
    no mount point, or does not exist, is done already. Raises Unavailable."""
    busy = 0
    while True:
        try:
            syscalls.umount2(os.fsencode(target), UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            if error.errno != errno.EBUSY or busy > _BUSY_TRIES:
                raise Unavailable(f"unmount {target!r}: {error.strerror}") from error
            busy += 1
            if busy > _BUSY_TRIES:
                _detach(target)
            else:
                time.sleep(_BUSY_PAUSE)


def hold(target: str) -> int:
    """A descriptor that keeps what is mounted on ``target`` alive, for ``detach_all``: closing it
    is what may take long. Raises OSError."""
    return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def detach_all(target: str) -> None:
    """As ``unmount_all``, without waiting for anybody: nobody sees the mounts any more, and what
    they hold goes with their last user. Raises Unavailable."""
    try:
        while True:
            syscalls.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise Unavailable(f"unmount {target!r}: {error.strerror}") from error


def mounted(path: str) -> bool:
    """Whether ``path`` (itself, not what a symlink leads to) is the root of a mount."""
    buffer = ctypes.create_string_buffer(256)
    try:
        syscalls.statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, 0, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise Unknown(f"stat {path!r}: {error.strerror}") from error
    (attributes,) = struct.unpack_from("Q", buffer, 8)
    (known,) = struct.unpack_from("Q", buffer, 56)
    if known & _ATTR_MOUNT_ROOT:
        return bool(attributes & _ATTR_MOUNT_ROOT)
    return os.path.realpath(path) in mount_points()  # Linux before 5.8


def mount_points(mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """All mount points of this mount namespace, in the order of mounting."""
    with open(mountinfo, "rb") as file:
        return [_unoctal(line.split(b" ", 5)[4]) for line in file]


def _unoctal(field: bytes) -> str:
    for code in (b"040", b"011", b"012", b"134"):  # space, tab, newline, backslash (last)
        field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(field)


def _detach(target: str) -> None:
    try:
        syscalls.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise Unavailable(f"unmount {target!r}: {error.strerror}") from error


def _inside(root: str, path: str) -> str:
    """``path`` below ``root``, with symlinks resolved as if ``root`` were ``/``."""
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    try:
        folder = os.open(root, os.O_PATH | os.O_CLOEXEC)
        try:
            raw = os.fsencode(path.lstrip("/")) + b"\0"
            fd = syscalls.syscall(syscalls.SYS_OPENAT2, folder, raw, how, 24)
        finally:
            os.close(folder)
        try:
            return str(Path(f"/proc/self/fd/{fd}").readlink())
        finally:
            os.close(fd)
    except OSError as error:
        raise Unknown(f"mount: target {path!r} in {root!r}: {error.strerror}") from error


# One mount call -----------------------------------------------------------------------------


def _mount(type: str, source: str, target: str, flags: int, data: Sequence[str]) -> None:
    joined = os.fsencode(",".join(data))
    if len(joined) < _PAGE - _ROOM:
        syscalls.mount(
            os.fsencode(source), os.fsencode(target), type.encode(), flags, joined or None
        )
        return
    if type != "overlay":
        raise InvalidArgument(f"mount: the options of {type!r} are longer than a page")
    from . import overlay_mount  # what few mounts need is not in every shim

    overlay_mount.mount_long(source, target, flags, data)


def _mount_source(mount: MountSpec, target: str, flags: int, options: opts.Options) -> None:
    if options.loop:
        from . import file_mount

        file_mount.mount_file(mount.type, mount.source, target, flags, options, _mount)
    else:
        _mount(mount.type, mount.source, target, flags, options.data)


def _mount_mapped(mount: MountSpec, target: str, options: opts.Options) -> None:
    from . import idmap

    flags = options.flags & ~opts.PROPAGATION
    with idmap.user_namespace(options.uidmap, options.gidmap) as userns:
        if mount.type == "overlay":
            from . import overlay_mount

            overlay_mount.mount_mapped(mount.source, target, flags, options.data, userns)
        elif flags & opts.BIND:
            idmap.bind(mount.source, target, flags, userns)
        else:
            _mount_source(mount, target, flags, options)
            try:
                idmap.bind(target, target, flags, userns)
            except BaseException:
                _detach(target)
                raise
