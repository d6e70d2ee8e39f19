"""The flags of ``run`` and ``containers create``, and what each does to a spec."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CliError
from ..values import labels_of, pair, require, size
from . import devices, env
from .defaults import ALL_CAPABILITIES, CAPABILITY_SETS, Spec

RUNTIME = "io.containerd.runc.v2"
_NAMESPACES = ("pid", "network", "uts", "mount", "user", "ipc", "cgroup")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares every flag that shapes a container."""
    _process_flags(parser.add_argument_group("process"))
    _file_flags(parser.add_argument_group("files and devices"))
    _isolation_flags(parser.add_argument_group("isolation"))
    _limit_flags(parser.add_argument_group("limits"))
    _runtime_flags(parser.add_argument_group("runtime"))


def _process_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tty", "-t", action="store_true", help="give the container a terminal")
    add("--env", "-e", action="append", default=[], metavar="KEY=VALUE",
        help="set a variable; KEY alone removes the image's")  # fmt: skip
    add("--env-file", metavar="FILE", help="set the variables in a file, one per line")
    add("--cwd", metavar="DIR", help="working directory")
    add("--user", metavar="USER", help="name, uid, name:group or uid:gid")
    add("--hostname", metavar="NAME", help="host name inside the container")
    add("--label", action="append", default=[], type=pair, metavar="KEY=VALUE")
    add("--annotation", action="append", default=[], type=pair, metavar="KEY=VALUE")
    add("--config", "-c", metavar="FILE", help="use this OCI config.json; only ID is given then")


def _file_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--mount", action="append", default=[], metavar="SPEC",
        help="type=bind,src=/tmp,dst=/host,options=rbind:ro")  # fmt: skip
    add("--read-only", action="store_true", help="make the root filesystem read-only")
    add("--rootfs", action="store_true", help="IMAGE is a folder to use as the root filesystem")
    add("--rootfs-propagation", metavar="MODE", help="shared, slave, private, ...")
    add("--device", action="append", default=[], metavar="PATH",
        help="add a device, or all devices below a folder")  # fmt: skip
    add("--snapshotter-label", action="append", default=[], type=pair, metavar="KEY=VALUE")


def _isolation_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--net-host", action="store_true", help="use the host's network")
    add("--with-ns", action="append", default=[], metavar="TYPE:PATH",
        help="join an existing Linux namespace")  # fmt: skip
    add("--uidmap", action="append", default=[], metavar="ID:HOST:COUNT")
    add("--gidmap", action="append", default=[], metavar="ID:HOST:COUNT")
    add("--remap-labels", action="store_true",
        help="let the snapshotter shift the owners of files")  # fmt: skip
    add("--privileged", action="store_true", help="all capabilities and devices, nothing masked")
    add("--cap-add", action="append", default=[], metavar="CAP_NAME")
    add("--cap-drop", action="append", default=[], metavar="CAP_NAME")
    add("--allow-new-privs", action="store_true", help="let set-uid programs gain privileges")
    add("--seccomp-profile", metavar="FILE", help="OCI seccomp profile (JSON)")
    add("--apparmor-profile", metavar="NAME", help="a profile that the host has loaded")


def _limit_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--memory-limit", type=size, default=0, metavar="SIZE", help="in bytes, or 64M, 1G")
    add("--cpus", type=float, default=0.0, metavar="N", help="how much of the CPUs, such as 1.5")
    add("--cpu-shares", type=int, default=1024, metavar="N", help="weight (default: 1024)")
    add("--cpu-quota", type=int, default=-1, metavar="US")
    add("--cpu-period", type=int, default=0, metavar="US")
    add("--cpuset-cpus", metavar="LIST", help="such as 0-1,3")
    add("--cpuset-mems", metavar="LIST")
    add("--pids-limit", type=int, default=0, metavar="N")
    add("--rlimit-nofile", metavar="SOFT:HARD")
    add("--cgroup", metavar="PATH", help='cgroup path; "" for none')


def _runtime_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--runtime", default="", metavar="NAME",
        help=f"(default: the namespace's, or {RUNTIME})")  # fmt: skip
    add("--runc-binary", default="", metavar="PATH", help="such as crun")
    add("--runc-root", default="", metavar="DIR")
    add("--runc-systemd-cgroup", action="store_true")
    add("--sandbox", default="", metavar="ID", help="run it in this sandbox")


def apply(spec: Spec, args: argparse.Namespace) -> None:
    """Changes the spec as the flags say, except for the user, which needs the root filesystem.

    Raises CliError for flags that contradict each other or are malformed."""
    process, linux = spec["process"], spec["linux"]
    if args.read_only:
        spec["root"]["readonly"] = True
    if args.cwd:
        process["cwd"] = args.cwd
    if args.tty:
        process["terminal"] = True
        if not any(item.startswith("TERM=") for item in process["env"]):
            process["env"].append("TERM=xterm")
    if args.privileged:
        _privileged(spec)
    if args.net_host:
        _host_network(spec)
    _capabilities(process, args)
    if args.allow_new_privs:
        process["noNewPrivileges"] = False
    _limits(spec, args)
    for text in args.with_ns:
        _join(linux, text)
    if args.uidmap or args.gidmap:
        _userns(linux, args)
    if args.cgroup is not None:
        linux["cgroupsPath"] = args.cgroup
    for path in args.device:
        for device in devices.find(path):
            linux.setdefault("devices", []).append(device)
            linux["resources"]["devices"].append(devices.allow(device))
    if args.rootfs_propagation:
        linux["rootfsPropagation"] = args.rootfs_propagation
    if args.hostname:
        spec["hostname"] = args.hostname
    if args.seccomp_profile:
        linux["seccomp"] = _profile(args.seccomp_profile)
    if args.apparmor_profile:
        process["apparmorProfile"] = args.apparmor_profile
    annotations = {**labels_of(args.annotation), **labels_of(args.label)}
    if annotations:
        spec["annotations"] = annotations


def environment(args: argparse.Namespace) -> list[str]:
    """What ``--env-file`` and ``--env`` say, in this order."""
    lines = env.read_file(args.env_file) if args.env_file else []
    return [*lines, *args.env]


def _privileged(spec: Spec) -> None:
    process, linux = spec["process"], spec["linux"]
    held = _own_capabilities()
    process["capabilities"] = {name: list(held) for name in CAPABILITY_SETS}
    linux.pop("maskedPaths", None)
    linux.pop("readonlyPaths", None)
    for mount in spec["mounts"]:
        if mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = ["rw" if item == "ro" else item for item in mount["options"]]
    linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    linux.setdefault("devices", []).extend(devices.find("/dev"))


def _own_capabilities() -> list[str]:
    """The capabilities that sctl itself has: more cannot be given to anybody here."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return [name for bit, name in enumerate(ALL_CAPABILITIES) if mask >> bit & 1]
    raise CliError("/proc/self/status does not tell sctl's own capabilities")


def _host_network(spec: Spec) -> None:
    linux = spec["linux"]
    linux["namespaces"] = [item for item in linux["namespaces"] if item["type"] != "network"]
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        spec["mounts"].append(
            {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        )
    process = spec["process"]
    process["env"] = env.merge(process["env"], [f"HOSTNAME={socket.gethostname()}"])


def _capabilities(process: Spec, args: argparse.Namespace) -> None:
    for flag, names in (("--cap-add", args.cap_add), ("--cap-drop", args.cap_drop)):
        for name in names:
            require(name in ALL_CAPABILITIES, f"{flag} {name}: not a capability (CAP_NAME)")
    for held in process["capabilities"].values():
        held += [name for name in args.cap_add if name not in held]
        held[:] = [name for name in held if name not in args.cap_drop]


def _limits(spec: Spec, args: argparse.Namespace) -> None:
    resources = spec["linux"]["resources"]
    cpu: Spec = {}
    if args.cpu_shares > 0:
        cpu["shares"] = args.cpu_shares
    if args.cpus > 0:
        require(
            args.cpu_quota == -1 and not args.cpu_period,
            "--cpus and --cpu-quota/--cpu-period exclude each other",
        )
        cpu |= {"quota": int(args.cpus * 100000), "period": 100000}
    elif args.cpu_quota != -1 or args.cpu_period:
        cpu |= {"quota": args.cpu_quota, "period": args.cpu_period}
    if args.cpuset_cpus:
        cpu["cpus"] = args.cpuset_cpus
    if args.cpuset_mems:
        cpu["mems"] = args.cpuset_mems
    if cpu:
        resources["cpu"] = cpu
    if args.memory_limit:
        resources["memory"] = {"limit": args.memory_limit}
    if args.pids_limit:
        resources["pids"] = {"limit": args.pids_limit}
    if args.rlimit_nofile:
        soft, _, hard = args.rlimit_nofile.partition(":")
        hard = hard or soft
        require(
            soft.isdecimal() and hard.isdecimal(),
            f"--rlimit-nofile {args.rlimit_nofile}: not of the form SOFT:HARD",
        )
        limits = [item for item in spec["process"]["rlimits"] if item["type"] != "RLIMIT_NOFILE"]
        limits.append({"type": "RLIMIT_NOFILE", "hard": int(hard), "soft": int(soft)})
        spec["process"]["rlimits"] = limits


def _join(linux: Spec, text: str) -> None:
    kind, colon, path = text.partition(":")
    require(colon and path, f"--with-ns {text}: not of the form TYPE:PATH")
    require(kind in _NAMESPACES, f"--with-ns {text}: the type is one of {', '.join(_NAMESPACES)}")
    entry = {"type": kind, "path": path}
    for index, item in enumerate(linux["namespaces"]):
        if item["type"] == kind:
            # The last one named wins, and the order of the others is kept.
            linux["namespaces"][index] = entry
            return
    linux["namespaces"].append(entry)


def _userns(linux: Spec, args: argparse.Namespace) -> None:
    require(args.uidmap and args.gidmap, "--uidmap and --gidmap go together")
    if not any(item["type"] == "user" for item in linux["namespaces"]):
        linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [_mapping("--uidmap", text) for text in args.uidmap]
    linux["gidMappings"] = [_mapping("--gidmap", text) for text in args.gidmap]


def _mapping(flag: str, text: str) -> Spec:
    parts = text.split(":")
    require(
        len(parts) == 3 and all(part.isdecimal() for part in parts),
        f"{flag} {text}: not of the form ID:HOST:COUNT",
    )
    inside, outside, count = map(int, parts)
    return {"containerID": inside, "hostID": outside, "size": count}


def _profile(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CliError(f"--seccomp-profile {path}: {error}") from None


def snapshot_labels(args: argparse.Namespace) -> dict[str, str]:
    """Labels of the container's snapshot: those named, and the id mapping where wanted."""
    labels = labels_of(args.snapshotter_label)
    if args.remap_labels:
        require(args.uidmap and args.gidmap, "--remap-labels needs --uidmap and --gidmap")
        labels["containerd.io/snapshot/uidmapping"] = _joined(args.uidmap)
        labels["containerd.io/snapshot/gidmapping"] = _joined(args.gidmap)
    return labels


def _joined(texts: Sequence[str]) -> str:
    return ",".join(texts)
