"""What a test must not leave behind: a census before and after it, and the difference.

Called by ``tests/conftest.py`` around every test. A census takes about a millisecond; only when
something new is found does the check wait, for a while, for it to go away by itself.

Tests run beside other tests and other programs, so what counts is what this test process made:
its own descriptors and threads, its children and whoever inherited its environment, mounts
below its temporary folders, and control groups of processes that it can see in them. Fixtures
that outlive a test are set up before the census, except where a test asks for one late: those
put ``lasting()`` around their set-up.
"""

from __future__ import annotations

import gc
import glob
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MARK = "SUPERVISORD_TEST_PROCESS"
"""The environment variable by which descendants are known, double-forked ones too."""

_CGROUPS = Path("/sys/fs/cgroup")
_FOREIGN_CGROUPS = frozenset({"user.slice", "machine.slice"})
_NAMES = (Path("/run/netns"), Path("/sys/class/net"))
_FILES = (
    "/run/supervisord/*",
    "/run/supervisord/fifo/*",
    "/tmp/containerd-mount*",
    "/tmp/crun.*",
    "/tmp/oci-runtime-*",
    "/tmp/supervisord-*",
    "/tmp/sv-*",
    "/var/lib/supervisord/*",
)
"""What the programs under test make outside the tests' folders."""

Found = dict[str, str]
"""What there is: a key that stays the same, and how to tell a person of it."""


@dataclass(frozen=True, slots=True)
class Room:
    """Whose leaks count: how the value of MARK begins, the temporary folders, whether nobody
    else uses this machine meanwhile, so that all that is new counts, and whether the descriptors
    and threads of this very process do."""

    mark: str
    folders: tuple[str, ...]
    alone: bool = False
    inside: bool = True


@dataclass(slots=True)
class Census:
    """Everything that could be left behind, as it is now."""

    found: dict[str, Found] = field(default_factory=dict)

    def add(self, other: Census) -> None:
        """Accepts what ``other`` saw as having been there before."""
        for kind, items in other.found.items():
            self.found.setdefault(kind, {}).update(items)

    def missing_from(self, before: Census) -> list[str]:
        """What is here and was not there, a line each."""
        return [
            f"{kind} {text}"
            for kind, items in self.found.items()
            for key, text in items.items()
            if key not in before.found.get(kind, {})
        ]


_accepted: list[Census] = []


@contextmanager
def lasting(room: Room) -> Iterator[None]:
    """What appears inside the block belongs to a fixture that outlives this test."""
    before = take(room)
    yield
    now = take(room, before)
    fresh = Census(
        {
            kind: {key: text for key, text in items.items() if key not in before.found[kind]}
            for kind, items in now.found.items()
        }
    )
    _accepted.append(fresh)


def take(room: Room, before: Census | None = None) -> Census:
    """Looks at everything. With ``before`` only processes that are new are looked into."""
    return Census(
        {
            "descriptor": _descriptors() if room.inside else {},
            "process": _processes(room, before.found["process"] if before else None),
            "thread": _threads() if room.inside else {},
            "mount": _mounts(room),
            "cgroup": _cgroups(room),
            "interface or network namespace": _names(room),
            "file": _files(room),
        }
    )


def left_behind(room: Room, before: Census, patience: float = 3.0) -> list[str]:
    """What is there since ``before`` and does not go away within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    delay = 0.005
    while True:
        for census in _accepted:
            before.add(census)
        lines = take(room, before).missing_from(before)
        if not lines or time.monotonic() > deadline:
            return lines
        gc.collect()  # what only a reference cycle holds is not leaked, just late
        time.sleep(delay)
        delay = min(delay * 2, 0.2)


_SPARE, _ZYGOTE = "supervisord-spa", "supervisord-zyg"


def _descriptors() -> Found:
    found: Found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
        found[f"{fd} {target}"] = f"{fd} of {target}"
    return found


def _threads() -> Found:
    return {str(thread.ident): repr(thread) for thread in threading.enumerate()}


def _stat(pid: str) -> tuple[str, str] | None:
    """Name with state, and parent, of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, rest = text.split("(", 1)[1].rsplit(")", 1)
    fields = rest.split()
    return f"{name} ({fields[0]})", fields[1]


def _is_ours(room: Room, pid: str, parent: str) -> bool:
    if parent == str(os.getpid()):
        return True
    try:
        wanted = f"{MARK}={room.mark}".encode()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if any(entry.startswith(wanted) for entry in environment.split(b"\0")):
            return True
        mounts = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:  # it ended, or is a kernel thread
        return False
    root = next((line for line in mounts.splitlines() if line.split(" ")[4] == "/"), "")
    return any(folder in root for folder in room.folders)


def _processes(room: Room, before: Found | None) -> Found:
    """All processes by pid, which a test is too short to see used again; without ``before``
    none is looked into."""
    pids = filter(str.isdigit, os.listdir("/proc"))
    if before is None:
        return dict.fromkeys(pids, "")
    found: Found = {}
    for pid in pids:
        if pid not in before and pid != str(os.getpid()):
            stat = _stat(pid)
            if stat is None or not _is_ours(room, pid, stat[1]):
                continue
            if not (stat[0].startswith(_SPARE) and _zygote_among(before)):
                found[pid] = f"{pid} {stat[0]}: {_command(pid)}"
    return found


def _zygote_among(before: Found) -> bool:
    """Whether a daemon that outlives the test has a zygote: that one makes a new spare for each
    that becomes a shim, and the spares end with it."""
    return any((stat := _stat(pid)) is not None and stat[0].startswith(_ZYGOTE) for pid in before)


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    text = " ".join(word.decode(errors="replace") for word in words)
    return " ".join(text.split())[:200]


def _mounts(room: Room) -> Found:
    found: Found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split(" ")
        if room.alone or words[4].startswith(room.folders):
            found[f"{words[0]} {words[4]}"] = f"on {words[4]}"
    return found


def _cgroups(room: Room) -> Found:
    """Control groups; where others use the machine too, none (the whole run checks them)."""
    found: Found = {}
    if not room.alone:
        return found
    waiting = [_CGROUPS]
    while waiting:
        folder = waiting.pop()
        try:
            if folder.stat().st_nlink == 2:  # no group below it
                continue
            inside = [Path(entry) for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:  # it was removed meanwhile
            continue
        for child in inside:
            if child.name not in _FOREIGN_CGROUPS:
                found[str(child)] = str(child)
                waiting.append(child)
    return found


def _names(room: Room) -> Found:
    if not room.alone:
        return {}
    return {
        str(folder / name): f"{folder}/{name}"
        for folder in _NAMES
        if folder.is_dir()
        for name in os.listdir(folder)
    }


def _files(room: Room) -> Found:
    """Looked at once for the whole run, when the tests' own folders are gone too."""
    if room.inside or not room.alone:
        return {}
    return {path: path for pattern in _FILES for path in glob.glob(pattern)}
