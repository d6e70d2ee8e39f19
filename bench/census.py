"""What one daemon holds of the machine: counted from outside, so that a leak cannot hide.

``soak`` and the tests compare two counts. Everything is told apart from what other programs of the
machine hold: processes by a mark in their environment, the rest by folders and names.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "SUPERVISORD_CENSUS"
"""The variable in the environment of a daemon, which all its processes inherit."""

_CGROUPS = Path("/sys/fs/cgroup")
_PASSING = ("-wal", "-shm", "-journal", ".tmp")


@dataclass(frozen=True, slots=True)
class Realm:
    """Whose things are counted: the value of ``MARK``, which is also the control group of its
    containers; the folder that holds root and state; and what the ids of containers begin with."""

    mark: str
    folder: Path
    prefix: str


def processes(realm: Realm) -> dict[int, str]:
    """The names of all its processes by pid, but not those in containers."""
    wanted = f"{MARK}={realm.mark}".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = Path(entry.path, "comm").read_text().strip()
        except OSError:
            continue  # it has just ended
    return found


def counts(realm: Realm, pids: Mapping[str, int]) -> dict[str, int]:
    """Everything that can be counted; ``pids`` are processes, by name, that live through the whole
    test: their descriptors and threads are counted for each."""
    found = {
        **{f"descriptors of {who}": _entries(f"/proc/{pid}/fd") for who, pid in pids.items()},
        **{f"threads of {who}": _entries(f"/proc/{pid}/task") for who, pid in pids.items()},
        "processes": len(processes(realm)),
        "mounts": Path("/proc/self/mountinfo").read_text().count(str(realm.folder)),
        "control groups": sum(1 for _ in _groups(realm)),
        "keyrings": Path("/proc/keys").read_text().count(realm.prefix),
        "files": sum(1 for _ in _files(realm.folder)),
    }
    for table, rows in _rows(realm.folder).items():
        found[f"rows of {table}"] = rows
    return found


def anonymous(pid: int) -> int:
    """The memory of a process that belongs to no file, shared with its parent or not, in bytes:
    what grows when something is kept."""
    return memory(pid, "Anonymous")


def memory(pid: int, kind: str) -> int:
    """A line of /proc/PID/smaps_rollup, in bytes. Raises LookupError, OSError."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) << 10
    raise LookupError(f"no {kind} of process {pid}")


def remove_group(name: str) -> None:
    """A control group that was made for containers which are gone, in all hierarchies. Raises
    OSError where it is in use."""
    for where in (name, f"*/{name}"):
        for folder in _CGROUPS.glob(where):
            folder.rmdir()


def _entries(folder: str) -> int:
    return len(os.listdir(folder))


def _groups(realm: Realm) -> Iterator[str]:
    for _, folders, _ in os.walk(_CGROUPS):
        yield from (name for name in folders if name.startswith(realm.prefix))


def _files(folder: Path) -> Iterator[str]:
    """Files and folders, not those of mounts, and not those that a database makes and removes
    as it likes."""
    device = folder.stat().st_dev
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _is_on(Path(parent, name), device)]
        yield from folders
        yield from (f"{parent}/{name}" for name in files if not name.endswith(_PASSING))


def _is_on(path: Path, device: int) -> bool:
    try:
        return path.lstat().st_dev == device
    except FileNotFoundError:
        return False


def _rows(folder: Path) -> dict[str, int]:
    found = {}
    # What is removed meanwhile is passed over, as ``Path.rglob`` would not.
    names = (Path(parent, name) for parent, _, files in os.walk(folder) for name in files)
    for path in names:
        if path.suffix != ".db":
            continue
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                counted = connection.execute(f'SELECT count(*) FROM "{table}"')  # noqa: S608
                found[f"{path.name}:{table}"] = counted.fetchone()[0]
        finally:
            connection.close()
    return found
