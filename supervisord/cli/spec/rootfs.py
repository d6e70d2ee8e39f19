"""Reads small files of a container's root filesystem without mounting it.

Given the mounts of a snapshot (a bind, or an overlay with its layers) it walks the layers itself:
whiteouts and opaque folders hide what is below, symlinks are resolved within the root, and every
step is an ``openat`` with O_NOFOLLOW. So nothing in an image can lead outside of it, and a killed
``sctl`` leaves no mount behind.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..errors import CliError

if TYPE_CHECKING:
    from protos.containerd.types.types_pb2 import Mount

MAX_SIZE = 4 << 20
_MAX_LINKS = 40
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def layers_of(mounts: Sequence[Mount]) -> list[str] | None:
    """The folders that make up a root filesystem, topmost first; None for other filesystems."""
    if len(mounts) != 1:
        return None
    mount = mounts[0]
    if mount.type == "bind":
        return [mount.source]
    if mount.type != "overlay":
        return None
    options = dict(option.partition("=")[::2] for option in mount.options)
    upper = [options["upperdir"]] if "upperdir" in options else []
    return upper + options.get("lowerdir", "").split(":")


def read_text(layers: Sequence[str], path: str) -> str | None:
    """The text of a regular file in the merged layers; None where there is none.

    Raises CliError for a file of more than 4 MiB, or a symlink loop."""
    with ExitStack() as stack:
        root = [_open(layer, None, stack) for layer in layers]
        file = _Walk([fd for fd in root if fd is not None], stack).find(path)
        if file is None:
            return None
        with os.fdopen(file, "rb") as stream:
            data = stream.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise CliError(f"{path} in the image is larger than {MAX_SIZE >> 20} MiB")
    return data.decode(errors="replace")


def _open(name: str, parent: int | None, stack: ExitStack) -> int | None:
    try:
        fd = os.open(name, _FOLDER, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    stack.callback(os.close, fd)
    return fd


class _Walk:
    """One resolution of a path; a merged folder is the list of its layers' descriptors."""

    def __init__(self, root: list[int], stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._links = 0

    def find(self, path: str) -> int | None:
        """A descriptor of the regular file at ``path``, which the caller closes."""
        here: list[list[int]] = [self._root]
        parts = [part for part in reversed(path.split("/")) if part]
        while parts:
            part = parts.pop()
            if part == ".":
                continue
            if part == "..":
                here = here[:-1] or [self._root]
                continue
            found = self._lookup(here[-1], part)
            if found is None:
                return None
            if isinstance(found, list):
                here.append(found)
                continue
            parent, mode = found
            if stat.S_ISLNK(mode):
                target = self._follow(parent, part)
                if target.startswith("/"):
                    here = [self._root]
                parts += [piece for piece in reversed(target.split("/")) if piece]
            elif stat.S_ISREG(mode) and not parts:
                return os.open(part, _FILE, dir_fd=parent)
            else:
                return None
        return None

    def _follow(self, parent: int, name: str) -> str:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise CliError(f"too many symlinks at {name} in the image")
        return os.readlink(name, dir_fd=parent)

    def _lookup(self, folder: list[int], name: str) -> list[int] | tuple[int, int] | None:
        """The merged folder of that name, or the layer and mode of what else has it."""
        merged: list[int] = []
        for layer in folder:
            try:
                status = os.stat(name, dir_fd=layer, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                break
            if not stat.S_ISDIR(status.st_mode):
                if merged:
                    break
                return layer, status.st_mode
            child = _open(name, layer, self._stack)
            if child is not None:
                merged.append(child)
                if _is_opaque(child):
                    break
        return merged or None


def _is_opaque(folder: int) -> bool:
    for attribute in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(folder, attribute) == b"y":
                return True
        except OSError:
            continue
    return False
