"""Processes: subreaper, names, pidfds, start times, descriptors, and word to systemd."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
from pathlib import Path

from . import syscalls

_PR_SET_PDEATHSIG = 1
_PR_SCHED_CORE = 62
_PR_SCHED_CORE_CREATE = 1
_PR_SCHED_CORE_THREAD_GROUP = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_LAST_FD = (1 << 32) - 1
_CLOSE_RANGE_CLOEXEC = 4
_SYS_CLOSE_RANGE = 436

_PIDFD_INFO_SIZE = 64
_PIDFD_INFO_EXIT = 8
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_SIZE << 16 | 0xFF << 8 | 11
"""``struct pidfd_info`` in its first form: a mask of 8 bytes first, the exit code in the last 4."""


def set_subreaper(enabled: bool = True) -> None:
    """Orphans below this process become its children from now on."""
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0)


def set_name(name: str) -> None:
    """The name of this thread as ``ps`` shows it; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    syscalls.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0)


def set_parent_death_signal(number: int) -> None:
    """The signal that this process gets when the thread that forked it ends (0 for none)."""
    syscalls.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def schedule_apart() -> None:
    """Gives this process, and all that it starts from now on, a core scheduling cookie of its own:
    no other process runs beside it on a processor core. Raises OSError (EINVAL, ENODEV) where the
    kernel or the processor has no core scheduling."""
    syscalls.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PR_SCHED_CORE_THREAD_GROUP, 0)


def pidfd_open(pid: int) -> int:
    """A descriptor of a process; readable once it has ended. Raises ProcessLookupError."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Raises ProcessLookupError when the process has been reaped."""
    signal.pidfd_send_signal(pidfd, number)


def start_time(pid: int, proc: str = "/proc") -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names one process for
    ever (until a reboot). None when there is none, or only its zombie is left."""
    try:
        stat = Path(proc, str(pid), "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def parent(pid: int) -> int:
    """The pid of a process's parent, 0 where that is out of sight. Raises OSError."""
    stat = Path("/proc", str(pid), "stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def alive(pid: int, started: int) -> bool:
    """Whether the process that had this pid and start time is still there."""
    return pid > 0 and start_time(pid) == started


def exit_status(pidfd: int, pid: int) -> int | None:
    """How a process that has ended did so, as a shell tells it (128 + signal), also where it was
    nobody's child of ours. ``pidfd`` must be readable. None where that cannot be told: reaped, and
    the kernel older than Linux 6.15."""
    status = _status_of_zombie(pidfd, pid)
    if status is None:
        status = _status_of_reaped(pidfd)
    if status is None:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _status_of_zombie(pidfd: int, pid: int) -> int | None:
    """What its parent has not taken yet: the last field of its stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        signal.pidfd_send_signal(pidfd, 0)  # not reaped even now: the pid was its own
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == b"Z" else None


def _status_of_reaped(pidfd: int) -> int | None:
    import fcntl  # rarely needed

    info = bytearray(_PIDFD_INFO_SIZE)
    info[0] = _PIDFD_INFO_EXIT
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not info[0] & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[_PIDFD_INFO_SIZE - 4 :], sys.byteorder)


def boot_id(proc: str = "/proc") -> str:
    """The id of this boot of the machine."""
    return Path(proc, "sys/kernel/random/boot_id").read_text().strip()


def close_range(first: int, last: int = _LAST_FD, *, cloexec: bool = False) -> None:
    """Closes all descriptors from ``first`` to ``last``, or has the next exec close them."""
    try:
        flags = _CLOSE_RANGE_CLOEXEC if cloexec else 0
        syscalls.syscall(_SYS_CLOSE_RANGE, first, last, flags)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        for entry in list(Path("/proc/self/fd").iterdir()):  # Linux before 5.9
            fd = int(entry.name)
            if first <= fd <= last:
                _close_or_mark(fd, cloexec)


def _close_or_mark(fd: int, cloexec: bool) -> None:
    try:
        if cloexec:
            os.set_inheritable(fd, False)
        else:
            os.close(fd)
    except OSError as error:
        if error.errno != errno.EBADF:  # the listing's own descriptor
            raise


def sd_notify(state: str) -> bool:
    """Tells systemd (``READY=1``, ``STOPPING=1``, ``STATUS=...``); False where nobody asked."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.sendall(state.encode())
    return True
