"""Mounting a snapshot for a person, with mount(8): ``images mount`` and ``unmount``.

The only commands of ``sctl`` that mount anything. A command that fails halfway undoes what it did.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CliError

if TYPE_CHECKING:
    from protos.containerd.types.types_pb2 import Mount

# The kernel takes one page of options; a long overlay is mounted from its layers' common folder.
_PAGE = 4096 - 1


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Mounts in order onto ``target``. Raises CliError with mount(8)'s words."""
    with ExitStack() as undo:
        for mount in mounts:
            point = str(Path(target, mount.target.lstrip("/")))
            _mount(mount, point)
            undo.callback(_run, ["umount", "-l", point])
        undo.pop_all()


def unmount_all(target: str) -> None:
    """Unmounts all that is mounted at ``target``; nothing mounted there is an error."""
    _run(["umount", target])
    while os.path.ismount(target):
        _run(["umount", target])


def command_line(mount: Mount, target: str) -> str:
    """The mount(8) command for one mount, as ``snapshots mounts`` prints it."""
    options = f" -o {','.join(mount.options)}" if mount.options else ""
    point = str(Path(target, mount.target.lstrip("/"))) if mount.target else target
    return f"mount -t {mount.type} {mount.source} {point}{options}"


def _mount(mount: Mount, point: str) -> None:
    options, folder = list(mount.options), None
    if mount.type == "overlay" and len(",".join(options)) >= _PAGE:
        options, folder = _relative(options)
    arguments = ["mount", "-t", mount.type]
    if mount.type in ("bind", "rbind"):
        arguments = ["mount", "--rbind" if "rbind" in options else "--bind"]
        options = [item for item in options if item not in ("bind", "rbind")]
    if options:
        arguments += ["-o", ",".join(options)]
    _run([*arguments, mount.source, str(Path(point).absolute())], folder)


def _relative(options: Sequence[str]) -> tuple[list[str], str]:
    """The same overlay with its lower folders relative to the one that they share."""
    lower = next(item for item in options if item.startswith("lowerdir="))
    paths = lower.partition("=")[2].split(":")
    folder = os.path.commonpath([Path(path).parent for path in paths])
    short = ":".join(os.path.relpath(path, folder) for path in paths)
    return [f"lowerdir={short}" if item == lower else item for item in options], folder


def _run(arguments: Sequence[str], folder: str | None = None) -> None:
    try:
        done = subprocess.run(
            arguments, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CliError(f"{arguments[0]}: {error}") from None
    if done.returncode != 0:
        raise CliError(" ".join(done.stderr.split()) or f"{arguments[0]} failed")
