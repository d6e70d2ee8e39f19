"""Out-of-memory events of a control group.

``watch`` answers a descriptor that becomes readable when the kernel reports something: an eventfd
of the v1 memory controller, or an inotify of ``memory.events`` in v2. ``Watch.take`` reads what is
there and says how many kills are new.
"""

from __future__ import annotations

import ctypes
import os

from supervisord.contracts.errors import NotFound

from . import syscalls
from .cgroups import Cgroup, table

_EFD_CLOEXEC = 0x80000
_EFD_NONBLOCK = 0x800
_IN_MODIFY = 0x2

_inotify_init1 = ctypes.CDLL(None, use_errno=True).inotify_init1
_inotify_add_watch = ctypes.CDLL(None, use_errno=True).inotify_add_watch


class Watch:
    """An open watch; close it. ``fileno`` is for an event loop."""

    def __init__(self, fd: int, folder: str, unified: bool) -> None:
        self._fd = fd
        self._folder = folder
        self._unified = unified
        self._seen = self._kills()

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._fd

    def take(self) -> int:
        """How many out-of-memory events happened since the last call. In v1 the removal of the
        group wakes the watch too; that counts as none."""
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return 0
        if not self._unified:
            if not os.access(f"{self._folder}/cgroup.event_control", os.F_OK):
                return 0
            return int.from_bytes(data[:8], "little")
        kills = self._kills()
        new, self._seen = max(0, kills - self._seen), max(kills, self._seen)
        return new

    def close(self) -> None:
        """Ends the watch."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _kills(self) -> int:
        if not self._unified:
            return 0
        return table(f"{self._folder}/memory.events").get("oom_kill", 0)


def watch(cgroup: Cgroup) -> Watch:
    """Watches a group. Raises NotFound where there is no memory controller."""
    folder = cgroup.folder("" if cgroup.unified else "memory")
    try:
        fd = _inotify(folder) if cgroup.unified else _eventfd(folder)
    except OSError as error:
        raise NotFound(f"memory events of {folder}: {error.strerror}") from error
    return Watch(fd, folder, cgroup.unified)


def _eventfd(folder: str) -> int:
    fd = syscalls.eventfd(0, _EFD_CLOEXEC | _EFD_NONBLOCK)
    try:
        control = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(f"{folder}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(target, f"{fd} {control}".encode())
            finally:
                os.close(target)
        finally:
            os.close(control)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _inotify(folder: str) -> int:
    fd: int = _inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if _inotify_add_watch(fd, os.fsencode(f"{folder}/memory.events"), _IN_MODIFY) < 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code))
    return fd
