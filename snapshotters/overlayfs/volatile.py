"""Snapshots whose writes need not reach the disk (the overlay option ``volatile``).

Without it the kernel writes the whole file system under the snapshots to its disk whenever a
container's root is unmounted, and on every sync of the container. With it, it marks the snapshot,
and refuses to mount it again. That is needed only after the machine went down: as long as the
kernel runs on, nothing is lost. So the snapshot remembers in which run of the kernel it was made,
and the mark is taken away when it is asked for again within that.
"""

# A plain os call, because this runs for every container.
# ruff: noqa: PTH110
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from snapshotters.trash import remove_tree
from supervisord.contracts.errors import FailedPrecondition

from .probe import kernel

LABEL = "containerd.io/snapshot/overlay.volatile"
"""``true`` on a snapshot that nobody needs after a crash of the machine."""

_NAMES = ("volatile", "fsync=volatile")
_MARK = "work/work/incompat"
_BOOT = "boot"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def known() -> bool:
    """Whether the kernel knows the option (Linux 5.10)."""
    return kernel() >= (5, 10)


def among(options: Sequence[str]) -> bool:
    """Whether it is one of these."""
    return any(option in _NAMES for option in options)


def without(options: Sequence[str]) -> tuple[str, ...]:
    """These without it: it means nothing where there is no upper folder."""
    return tuple(option for option in options if option not in _NAMES)


def asked(labels: Mapping[str, str]) -> bool:
    """Whether the labels of a snapshot ask for it."""
    return labels.get(LABEL) == "true"


def note(folder: str) -> None:
    """Has a new snapshot remember this run of the kernel. Raises OSError."""
    Path(folder, _BOOT).write_text(_BOOT_ID.read_text())


def marked(folder: str) -> bool:
    """Whether the kernel refuses to mount the snapshot in ``folder`` again."""
    return os.path.exists(f"{folder}/{_MARK}")


def renew(folder: str, key: str) -> None:
    """Lets the snapshot in ``folder`` be mounted again, where that is safe.

    Raises FailedPrecondition for one that was written in an earlier run of the kernel, OSError."""
    refused = marked(folder)
    try:
        same = Path(folder, _BOOT).read_text() == _BOOT_ID.read_text()
    except FileNotFoundError:  # it became volatile only now
        same = not refused
        if same:
            note(folder)
    if not same and (refused or any(Path(folder, "fs").iterdir())):
        raise FailedPrecondition(
            f"snapshot {key!r}: volatile, and the machine went down since: its contents are not "
            "to be relied on, remove it"
        )
    if not same:
        note(folder)
    if refused:
        remove_tree(Path(folder, _MARK))
