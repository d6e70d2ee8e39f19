"""What a process may do: capabilities, privileges, keyrings, limits; and who may look into it.

All of it concerns the calling process, which must have a single thread. Names and numbers are the
kernel's (capabilities(7), prctl(2), keyctl(2), getrlimit(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

from . import syscalls

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_AMBIENT_RAISE = 2
_AMBIENT_CLEAR_ALL = 4

_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}

CAPABILITIES = {
    f"CAP_{name}": number
    for number, name in enumerate(
        (
            *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID"),
            *("SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST"),
            *("NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO"),
            *("SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
            *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE"),
            *("AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
            *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
        )
    )
}
"""Names as OCI specs write them, and their numbers."""

RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK"),
            *("AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}
"""Names as OCI specs write them, and their numbers on x86 and ARM."""


def forbid_dumps() -> None:
    """Nobody may trace this process, read its memory or open what it has open, unless privileged
    on the host. Changing users resets that; executing a program does too."""
    syscalls.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_new_privileges() -> None:
    """Programs that are executed from now on gain nothing from set-id bits."""
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_bounding(kept: int) -> None:
    """Takes all capabilities but those in the mask ``kept`` out of the bounding set."""
    for number in range(64):
        if kept >> number & 1:
            continue
        try:
            syscalls.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel's last one was the one before
                return
            raise


def become(uid: int, gid: int, groups: Iterable[int]) -> None:
    """Changes user and groups, and keeps the permitted capabilities."""
    syscalls.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)


def set_capabilities(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    """Sets all of them at once, from masks of numbers."""
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    low_and_high = b"".join(
        (mask >> shift & 0xFFFFFFFF).to_bytes(4, "little")
        for shift in (0, 32)
        for mask in (effective, permitted, inheritable)
    )
    syscalls.capset(header, low_and_high)
    syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(ambient.bit_length()):
        if ambient >> number & 1:
            syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number, 0, 0)


def join_session_keyring(name: str) -> None:
    """Leaves the inherited session keyring for the one of this name, which is made if need be.
    Kernels without keyrings have nothing to leave. Raises NotImplementedError where the number of
    the call is not known."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise NotImplementedError(f"keyctl on {os.uname().machine}")
    try:
        syscalls.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, name.encode())
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


class _Limit(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def set_limit(number: int, soft: int, hard: int) -> None:
    """Sets a resource limit; 2^64 - 1 is none."""
    syscalls.setrlimit(number, ctypes.addressof(_Limit(soft, hard)))
