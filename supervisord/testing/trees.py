"""Changes to directory trees as data, and a tree's contents as a comparable value."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

Change = Callable[[Path], None]


def file(path: str, content: str = "", mode: int = 0o644) -> Change:
    def apply(root: Path) -> None:
        target = root / path
        target.write_text(content)
        target.chmod(mode)

    return apply


def folder(path: str, mode: int = 0o755) -> Change:
    def apply(root: Path) -> None:
        (root / path).mkdir()
        (root / path).chmod(mode)

    return apply


def remove(path: str) -> Change:
    def apply(root: Path) -> None:
        target = root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    return apply


def rename(old: str, new: str) -> Change:
    def apply(root: Path) -> None:
        (root / old).rename(root / new)

    return apply


def link(old: str, new: str) -> Change:
    def apply(root: Path) -> None:
        os.link(root / old, root / new, follow_symlinks=False)

    return apply


def symlink(text: str, path: str) -> Change:
    def apply(root: Path) -> None:
        (root / path).symlink_to(text)

    return apply


def device(path: str, kind: int, major: int, minor: int) -> Change:
    def apply(root: Path) -> None:
        os.mknod(root / path, kind | 0o600, os.makedev(major, minor))

    return apply


def chown(path: str, uid: int, gid: int) -> Change:
    def apply(root: Path) -> None:
        os.chown(root / path, uid, gid, follow_symlinks=False)

    return apply


def xattr(path: str, name: str, value: bytes) -> Change:
    def apply(root: Path) -> None:
        os.setxattr(root / path, name, value, follow_symlinks=False)

    return apply


def both(*changes: Change) -> Change:
    """One change made of several, in order."""

    def apply(root: Path) -> None:
        for change in changes:
            change(root)

    return apply


def contents(root: Path) -> dict[str, tuple[object, ...]]:
    """What ``root`` holds by relative path: type and mode, owner, device, contents, xattrs, and
    the first path of the same inode. Times are left out."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[tuple[int, int], str] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root))
        data: object = None
        if stat.S_ISREG(info.st_mode):
            data = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            data = str(path.readlink())
        inode = (info.st_dev, info.st_ino)
        first = name if stat.S_ISDIR(info.st_mode) else inodes.setdefault(inode, name)
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith("trusted.overlay.")
        }
        owner = (info.st_uid, info.st_gid)
        found[name] = (oct(info.st_mode), owner, info.st_rdev, data, first, attributes)
    return found
