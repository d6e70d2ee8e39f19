"""Control groups: where a process is, what it uses, and what it runs with.

One form for the three layouts: v1 (a hierarchy per controller), hybrid (v1, with a v2 hierarchy
beside it that has no controllers of interest) and unified (v2). Everything starts at a root
folder parameter, so that recorded files serve as well as the kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supervisord.contracts.errors import NotFound

if TYPE_CHECKING:
    from google.protobuf.message import Message

ROOT = "/sys/fs/cgroup"
MAX = (1 << 64) - 1
"""What a limit of ``max`` is as a number in v2 metrics."""

_EVERYTHING = 1 << 16


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The control groups of a process: controller → path within its hierarchy. The unified
    hierarchy's path stands under ""; ``unified`` tells whether it has the controllers."""

    root: str
    unified: bool
    paths: Mapping[str, str]

    def folder(self, controller: str) -> str:
        """The folder with the files of a controller. Raises NotFound where there is none."""
        if self.unified:
            return _join(self.root, self.paths.get("", "/"))
        path = self.paths.get(controller)
        if path is None:
            raise NotFound(f"cgroup controller {controller!r}: not found")
        if not controller:
            return _join(f"{self.root}/unified", path)
        return _join(f"{self.root}/{controller.removeprefix('name=')}", path)


def _join(root: str, path: str) -> str:
    return root + path if path != "/" else root


def is_unified(root: str = ROOT) -> bool:
    """Whether ``root`` is the v2 hierarchy itself."""
    return os.access(f"{root}/cgroup.controllers", os.F_OK)


def of_pid(pid: int, root: str = ROOT, proc: str = "/proc") -> Cgroup:
    """The control groups that a process is in. Raises NotFound when there is no such process."""
    text = read(f"{proc}/{pid}/cgroup")
    if not text:
        raise NotFound(f"cgroup of process {pid}: not found")
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return Cgroup(root, is_unified(root), paths)


def stats(cgroup: Cgroup) -> Message:
    """What the group uses, as ``io.containerd.cgroups.v1.Metrics`` or ``v2.Metrics``. What the
    kernel does not offer stays out. Raises NotFound when the group is gone."""
    if cgroup.unified:
        from . import cgroups_v2

        return cgroups_v2.metrics(cgroup.folder(""))
    from . import cgroups_v1

    return cgroups_v1.metrics(cgroup)


def pids(cgroup: Cgroup) -> list[int]:
    """All processes in the group and in those below it, in ascending order. Raises NotFound."""
    folder = cgroup.folder("" if cgroup.unified else _any_controller(cgroup))
    if not Path(folder).is_dir():
        raise NotFound(f"cgroup {folder}: not found")
    found: set[int] = set()
    for parent, _, files in os.walk(folder):
        if "cgroup.procs" in files:
            found.update(int(pid) for pid in (read(f"{parent}/cgroup.procs") or "").split())
    return sorted(found)


def _any_controller(cgroup: Cgroup) -> str:
    for controller in ("devices", "freezer", "pids", "memory", "cpu", "name=systemd"):
        if cgroup.paths.get(controller, "/") != "/":
            return controller
    return "devices"


# Files --------------------------------------------------------------------------------------


def read(path: str) -> str | None:
    """A small file of the kernel's; None where it does not exist or cannot be read now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, _EVERYTHING):
            parts.append(part)
        return b"".join(parts).decode()
    except OSError:  # the group went away meanwhile, or pressure is switched off
        return None
    finally:
        os.close(fd)


def number(path: str, maximum: int) -> int | None:
    """A file with one number; ``max`` is ``maximum``, a negative one is 0."""
    text = read(path)
    if text is None:
        return None
    text = text.strip()
    if text == "max":
        return maximum
    return max(0, int(text)) if text.lstrip("-").isdigit() else None


def table(path: str) -> dict[str, int]:
    """A file of ``name value`` lines; empty where it does not exist."""
    values: dict[str, int] = {}
    for line in (read(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            values[name] = int(value)
    return values


def page_sizes(folder: str, suffix: str) -> list[str]:
    """The page sizes of which a folder has ``hugetlb.SIZE.suffix`` files."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return []
    parts = (name.split(".") for name in names if name.startswith("hugetlb."))
    return sorted(part[1] for part in parts if len(part) == 3 and part[2] == suffix)
