"""Overlay mounts that one mount(2) cannot make: more layers than its page of options holds, and
lower layers whose owners are mapped.

The kernel's newer interface takes a layer per call (Linux 6.7) and layers that are mounted nowhere
(6.15): nothing but the finished mount is ever seen. Before that, layers are named relative to the
folder that holds them all, from a thread with a working folder of its own; mapped ones are mounted
in a mount namespace that only this thread has, so that a crash leaves nothing of them. The overlay
keeps its own hold of its layers. Blocking.
"""

# Plain os calls, as these paths are the kernel's.
# ruff: noqa: PTH116
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from supervisord.contracts.errors import Error, InvalidArgument

from . import idmap, syscalls
from . import mount_options as opts

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_ATTRS = {opts.RDONLY: 1, opts.NOSUID: 2, opts.NODEV: 4, opts.NOEXEC: 8, opts.NOATIME: 0x10}
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def mount_long(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """More options than a page holds. Raises InvalidArgument (too many layers), OSError."""
    try:
        _by_fsconfig(source, target, flags, data, _lower_by_path)
    except OSError:  # no such interface, or a path of more than 255 bytes
        _in_thread(lambda: _compacted(source, str(Path.cwd() / target), flags, data))


def mount_mapped(source: str, target: str, flags: int, data: Sequence[str], userns: int) -> None:
    """Lower layers with the owners that ``userns`` maps; the upper one is as it is.

    Raises InvalidArgument (a layer's filesystem cannot map ids), OSError."""
    with _Layers(opts.common_folder(_lowers(data)), userns) as layers:
        try:
            _by_fsconfig(source, target, flags, data, layers.add)
        except OSError:  # no such interface, or none for layers that are mounted nowhere
            _mapped_elsewhere(source, target, flags, data, userns)


# By a call for each layer ---------------------------------------------------------------------


def _by_fsconfig(
    source: str,
    target: str,
    flags: int,
    data: Sequence[str],
    lower: Callable[[int, str], None],
) -> None:
    context = syscalls.syscall(syscalls.SYS_FSOPEN, b"overlay\0", 1)
    try:
        _set(context, "source", source)
        if flags & opts.RDONLY:
            _set_flag(context, "ro")
        for option in data:
            key, has_value, value = option.partition("=")
            if key == "lowerdir":
                for folder in opts.split_lowerdir(value):
                    lower(context, folder)
            elif has_value:
                _set(context, key, value)
            else:
                _set_flag(context, key)
        syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = sum(bit for flag, bit in _ATTRS.items() if flags & flag)
        made = syscalls.syscall(syscalls.SYS_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)
    _attach(made, target)


class _Layers(ExitStack):
    """Mapped layers, mounted nowhere: the kernel wants their mounts to last until the overlay is
    made. One mount of the folder that holds them all serves those on its filesystem."""

    def __init__(self, base: str, userns: int) -> None:
        super().__init__()
        self._base = base
        self._userns = userns
        self._tree = self._clone(base) if base else -1

    def add(self, context: int, folder: str) -> None:
        """Makes ``folder`` the next lower layer of the overlay. Raises OSError."""
        layer = self._inside(folder)
        try:
            fd = self._clone(folder) if layer is None else layer
            key = b"lowerdir+\0"
            syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_SET_FD, key, None, fd)
        finally:
            if layer is not None:
                os.close(layer)

    def _inside(self, folder: str) -> int | None:
        if self._tree < 0:
            return None
        found = os.stat(folder)
        layer = os.open(os.path.relpath(folder, self._base), _FOLDER, dir_fd=self._tree)
        if _same(found, os.fstat(layer)):
            return layer
        os.close(layer)
        return None

    def _clone(self, folder: str) -> int:
        tree = idmap.clone(folder, opts.RDONLY, self._userns)
        self.callback(os.close, tree)
        return tree


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Not so where a layer on a filesystem of its own is mounted below the common folder."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _attach(made: int, target: str) -> None:
    try:
        idmap.attach(made, target)
    finally:
        os.close(made)


def _lower_by_path(context: int, folder: str) -> None:
    _set(context, "lowerdir+", folder)


def _set(context: int, key: str, value: str) -> None:
    raw = os.fsencode(key) + b"\0", os.fsencode(value) + b"\0"
    syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, *raw, 0)


def _set_flag(context: int, key: str) -> None:
    raw = os.fsencode(key) + b"\0"
    syscalls.syscall(syscalls.SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, raw, None, 0)


# By relative paths ----------------------------------------------------------------------------


def _compacted(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """The lower folders relative to the folder that holds them all; in a thread of its own."""
    folders = _lowers(data)
    base = opts.common_folder(folders)
    if not base:
        raise _too_many(folders)
    syscalls.unshare(_CLONE_FS)
    os.chdir(base)
    _mount_relative(source, target, flags, data, base)


def _mapped_elsewhere(
    source: str, target: str, flags: int, data: Sequence[str], userns: int
) -> None:
    """All layers in one mapped mount of the folder that holds them, which stands in a mount
    namespace of a thread; the finished overlay is cloned out of it."""
    folders = _lowers(data)
    base = opts.common_folder(folders)
    if not base:
        raise InvalidArgument("mount: uidmap: the layers have no common folder")
    stored = [os.stat(folder) for folder in folders]
    tree = idmap.clone(base, opts.RDONLY, userns)
    made: list[int] = []
    place = str(Path.cwd() / target)

    def work() -> None:
        syscalls.unshare(_CLONE_NEWNS)
        syscalls.mount(None, b"/", None, opts.PRIVATE | opts.REC, None)
        idmap.attach(tree, place)
        os.chdir(place)
        for folder, found in zip(folders, stored, strict=True):
            if not _same(found, os.stat(os.path.relpath(folder, base))):
                raise InvalidArgument(f"mount: uidmap: {folder!r} is a mount of its own")
        _mount_relative(source, place, flags, data, base)
        raw = os.fsencode(place) + b"\0"
        how = _OPEN_TREE_CLONE | os.O_CLOEXEC
        made.append(syscalls.syscall(syscalls.SYS_OPEN_TREE, _AT_FDCWD, raw, how))

    try:
        _in_thread(work)
    finally:
        os.close(tree)
    _attach(made[0], target)


def _mount_relative(source: str, target: str, flags: int, data: Sequence[str], base: str) -> None:
    folders = _lowers(data)
    short = ":".join(opts.escape_colon(os.path.relpath(each, base)) for each in folders)
    options = [f"lowerdir={short}" if o.startswith("lowerdir=") else o for o in data]
    joined = os.fsencode(",".join(options))
    if len(joined) >= _PAGE:
        raise _too_many(folders)
    syscalls.mount(os.fsencode(source), os.fsencode(target), b"overlay", flags, joined)


def _lowers(data: Sequence[str]) -> list[str]:
    lower = next((o.removeprefix("lowerdir=") for o in data if o.startswith("lowerdir=")), "")
    return opts.split_lowerdir(lower)


def _too_many(folders: Sequence[str]) -> Error:
    return InvalidArgument(f"mount: {len(folders)} overlay layers need more than a page")


def _in_thread(work: Callable[[], None]) -> None:
    """Runs ``work`` in a thread that ends with it, and raises what it raises."""
    failure: list[OSError | Error] = []

    def run() -> None:
        try:
            work()
        except (OSError, Error) as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
