"""Mounts: carries out the mounts that snapshotters describe, and takes them away again.

``mount_all`` mounts a list on one target and leaves nothing when it fails; ``unmount_all`` takes
away all that is stacked on a path. Overlay mounts with more layers than fit in one page of
options go through the kernel's newer interface, or through relative paths. Blocking.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
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

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_ATTRS = {opts.RDONLY: 1, opts.NOSUID: 2, opts.NODEV: 4, opts.NOEXEC: 8, opts.NOATIME: 0x10}
_CLONE_FS = 0x200


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
        data = ",".join(options.data)
        if not options.flags & opts.REMOUNT or data:
            _mount(mount.type, mount.source, target, flags, options.data)
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
    return Unknown(f"mount {where}: {(error.strerror or str(error)).lower()}")


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
    joined = ",".join(data)
    if len(os.fsencode(joined)) < _PAGE - _ROOM:
        _mount2(type, source, target, flags, joined)
        return
    if type != "overlay":
        raise InvalidArgument(f"mount: the options of {type!r} are longer than a page")
    try:
        _mount_by_fsconfig(source, target, flags, data)
    except OSError:  # no such interface, or a path of more than 255 bytes
        _mount_compacted(source, target, flags, data)


def _mount2(type: str, source: str, target: str, flags: int, data: str) -> None:
    syscalls.mount(
        os.fsencode(source), os.fsencode(target), type.encode(), flags, os.fsencode(data) or None
    )


def _mount_by_fsconfig(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """An overlay mount with one configuration call per layer (``lowerdir+``, Linux 6.7)."""
    context = syscalls.syscall(syscalls.SYS_FSOPEN, b"overlay\0", 1)
    try:
        _configure(context, "source", source)
        for option in data:
            key, has_value, value = option.partition("=")
            if key == "lowerdir":
                for folder in opts.split_lowerdir(value):
                    _configure(context, "lowerdir+", folder)
            elif has_value:
                _configure(context, key, value)
            else:
                raw = os.fsencode(key) + b"\0"
                syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, raw, None, 0)
        syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = sum(bit for flag, bit in _ATTRS.items() if flags & flag)
        made = syscalls.syscall(syscalls.SYS_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)
    try:
        raw = os.fsencode(target) + b"\0"
        syscalls.syscall(
            syscalls.SYS_MOVE_MOUNT, made, b"\0", _AT_FDCWD, raw, _MOVE_MOUNT_F_EMPTY_PATH
        )
    finally:
        os.close(made)


def _configure(context: int, key: str, value: str) -> None:
    syscalls.syscall(
        syscalls.SYS_FSCONFIG,
        context,
        _FSCONFIG_SET_STRING,
        os.fsencode(key) + b"\0",
        os.fsencode(value) + b"\0",
        0,
    )


def _mount_compacted(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """The lower folders relative to the folder that holds them all, from a thread that has a
    working folder of its own."""
    lower = next((o.removeprefix("lowerdir=") for o in data if o.startswith("lowerdir=")), "")
    folders = opts.split_lowerdir(lower)
    base = opts.common_folder(folders)
    short = ":".join(opts.escape_colon(os.path.relpath(f, base)) for f in folders) if base else ""
    options = [f"lowerdir={short}" if o.startswith("lowerdir=") else o for o in data]
    joined = ",".join(options)
    if not base or len(os.fsencode(joined)) >= _PAGE:
        raise InvalidArgument(f"mount: {len(folders)} overlay layers need more than a page")
    failure: list[OSError | Error] = []

    def work() -> None:
        try:
            syscalls.unshare(_CLONE_FS)
            os.chdir(base)
            _mount2("overlay", source, absolute, flags, joined)
        except OSError as error:
            failure.append(error)

    absolute = str(Path.cwd() / target)
    thread = threading.Thread(target=work, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
