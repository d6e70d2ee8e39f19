"""The spec of a container before any flag or image has its say.

The values are the ones that containerd's clients start from, so that a container made by ``sctl``
is confined like one made by any of them.
"""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

VERSION = "1.0.2"

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
# In the order of their numbers (capabilities(7)).
ALL_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
CAPABILITY_SETS = ("bounding", "effective", "permitted")
ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# null, random, full, tty, zero, urandom, console, all ptys, ptmx.
_DEVICES = ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (136, None), (5, 2))
_TMPFS = ["nosuid", "strictatime", "mode=755", "size=65536k"]


def _mounts() -> list[Spec]:
    def mount(destination: str, type: str, source: str, options: list[str]) -> Spec:
        return {"destination": destination, "type": type, "source": source, "options": options}

    plain = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        mount("/proc", "proc", "proc", list(plain)),
        mount("/dev", "tmpfs", "tmpfs", list(_TMPFS)),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", "size=65536k"]),  # noqa: S108
        mount("/dev/mqueue", "mqueue", "mqueue", list(plain)),
        mount("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        mount("/run", "tmpfs", "tmpfs", list(_TMPFS)),
    ]


def device_rules() -> list[Spec]:
    """The device cgroup: nothing but the devices that every program may expect."""
    rules: list[Spec] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        rule: Spec = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules


def default_spec(namespace: str, id: str) -> Spec:
    """A fresh spec for the container ``id``; nothing in it is shared with other specs."""
    return {
        "ociVersion": VERSION,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "env": [],
            "args": [],
            "capabilities": {name: list(CAPABILITIES) for name in CAPABILITY_SETS},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": device_rules()},
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": name} for name in NAMESPACES],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
        },
    }
