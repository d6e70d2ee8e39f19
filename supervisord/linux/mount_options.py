"""Mount options as mount(8) writes them, taken apart for mount(2).

The names and flags are those that containerd's mount package knows: what is not a flag is data
for the filesystem. Pure functions.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from supervisord.contracts.errors import InvalidArgument

RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
SYNCHRONOUS = 0x10
REMOUNT = 0x20
MANDLOCK = 0x40
DIRSYNC = 0x80
NOATIME = 0x400
NODIRATIME = 0x800
BIND = 0x1000
REC = 0x4000
SILENT = 0x8000
UNBINDABLE = 1 << 17
PRIVATE = 1 << 18
SLAVE = 1 << 19
SHARED = 1 << 20
RELATIME = 1 << 21
STRICTATIME = 1 << 24

PROPAGATION = SHARED | PRIVATE | SLAVE | UNBINDABLE

_SET = {
    "bind": BIND,
    "dirsync": DIRSYNC,
    "mand": MANDLOCK,
    "noatime": NOATIME,
    "nodev": NODEV,
    "nodiratime": NODIRATIME,
    "noexec": NOEXEC,
    "nosuid": NOSUID,
    "private": PRIVATE,
    "rbind": BIND | REC,
    "relatime": RELATIME,
    "remount": REMOUNT,
    "ro": RDONLY,
    "rprivate": PRIVATE | REC,
    "rshared": SHARED | REC,
    "rslave": SLAVE | REC,
    "runbindable": UNBINDABLE | REC,
    "shared": SHARED,
    "slave": SLAVE,
    "strictatime": STRICTATIME,
    "sync": SYNCHRONOUS,
    "unbindable": UNBINDABLE,
}
_CLEAR = {
    "async": SYNCHRONOUS,
    "atime": NOATIME,
    "defaults": 0,
    "dev": NODEV,
    "diratime": NODIRATIME,
    "exec": NOEXEC,
    "nomand": MANDLOCK,
    "norelatime": RELATIME,
    "nostrictatime": STRICTATIME,
    "rw": RDONLY,
    "suid": NOSUID,
}
_DIRECT = "direct-io"
_UNESCAPED_COLON = re.compile(r"(?<!\\):")


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of mount(2), the data of the filesystem, in order, how ids are mapped ("" where
    they are not; see ``linux.idmap``), and whether the source is a file to be mounted by a loop
    device, with direct I/O if so asked."""

    flags: int
    data: tuple[str, ...]
    uidmap: str = ""
    gidmap: str = ""
    loop: bool = False
    direct: bool = False


def parse(options: Sequence[str]) -> Options:
    """Takes options apart; later ones win.

    Raises InvalidArgument for an option that only containerd's own mount manager understands or
    that has a zero byte."""
    flags = 0
    loop = False
    data: list[str] = []
    maps = {"uidmap": "", "gidmap": ""}
    for option in options:
        if "\0" in option:
            raise InvalidArgument("mount: an option must not have a zero byte")
        if option.startswith("X-containerd."):
            raise InvalidArgument(f"mount: option {option!r} is not one of a plain mount")
        key, _, value = option.partition("=")
        if option == "loop":
            loop = True
        elif key in maps and value:
            maps[key] = value
        elif option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option:
            data.append(option)
    direct = loop and _DIRECT in data
    if direct:
        data.remove(_DIRECT)
    return Options(flags, tuple(data), **maps, loop=loop, direct=direct)


def split_lowerdir(value: str) -> list[str]:
    """The folders of a ``lowerdir`` value, which escapes colons by a backslash."""
    return [_unescape(part) for part in _UNESCAPED_COLON.split(value)]


def _unescape(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part)


def common_folder(folders: Sequence[str]) -> str:
    """The deepest folder that holds all of them ("" for none but the root)."""
    try:
        common = os.path.commonpath(folders)
    except ValueError:
        return ""
    if common in folders:
        common = str(PurePosixPath(common).parent)
    return "" if common == "/" else common


def escape_colon(path: str) -> str:
    """A path as an element of ``lowerdir``."""
    return path.replace("\\", "\\\\").replace(":", "\\:")
