"""What a new process needs to know of the container that it joins, as its runtime wrote it down.

runc keeps all of it in ``state.json``; crun keeps its own ``status`` and a copy of ``config.json``.
Called by ``enter``, in the fork. What is not known to be covered is ``Special``, and left to the
runtime: names and meanings are those of runc 1.1.5 and crun 1.8.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from supervisord.linux import cgroups

from .bundle import read

_NAMESPACES = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
_NEEDED = _NAMESPACES["NEWNS"] | _NAMESPACES["NEWPID"]
_OCI_NAMESPACES = {
    "mount": "NEWNS",
    "cgroup": "NEWCGROUP",
    "uts": "NEWUTS",
    "ipc": "NEWIPC",
    "pid": "NEWPID",
    "network": "NEWNET",
}

_RUNC_KNOWN = frozenset(
    (
        *("rootfs", "umask", "readonlyfs", "rootPropagation", "mounts", "devices", "mount_label"),
        *("hostname", "domainname", "namespaces", "capabilities", "networks", "routes", "cgroups"),
        *("mask_paths", "readonly_paths", "sysctl", "no_new_privileges", "Hooks", "version"),
        *("labels", "no_new_keyring", "rlimits", "oom_score_adj"),
    )
)
"""What a container's configuration in ``state.json`` may hold that a new process is made with, or
that is done with; anything else that is set there is the runtime's to understand. So below."""
_CRUN_KNOWN = frozenset(
    (
        *("ociVersion", "process", "root", "hostname", "domainname", "mounts", "hooks"),
        *("annotations", "linux"),
    )
)
_LINUX_KNOWN = frozenset(
    (
        *("namespaces", "devices", "cgroupsPath", "resources", "rootfsPropagation"),
        *("maskedPaths", "readonlyPaths", "mountLabel", "sysctl"),
    )
)
_INIT_KNOWN = frozenset(
    (
        *("user", "args", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges"),
        *("oomScoreAdj", "consoleSize", "terminal"),
    )
)
_SWITCHES = ("run.oci.", "module.")
"""How annotations begin that change what crun does."""

_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Special(Exception):
    """Why the runtime has to do it."""


@dataclass(frozen=True, slots=True)
class Joining:
    """The container's side of a new process. ``groups`` are folders of control groups by
    controller ("" is v2's); ``namespaces`` is the sum of clone(2)'s flags; ``keyring`` is "" where
    the session keyring stays. ``limits`` (number, soft, hard), ``capabilities`` and
    ``environment`` hold where the process brings none of its own. ``as_crun`` is for where the two
    runtimes differ in habit."""

    groups: Mapping[str, str]
    namespaces: int
    keyring: str
    oom_score: int | None
    limits: Sequence[tuple[int, int, int]]
    capabilities: Mapping[str, Sequence[str]]
    environment: Sequence[str]
    as_crun: bool


def of_runc(folder: str, id: str, pid: int) -> Joining:
    """From runc's state folder. Raises Special, OSError, LookupError, ValueError, TypeError."""
    state, _ = _parse(read(f"{folder}/state.json").decode(), 0)
    config = state["config"]
    only(config, _RUNC_KNOWN)
    if state["init_process_pid"] != pid:
        raise Special("pid")
    return Joining(
        state["cgroup_paths"],
        _flags(namespace["type"] for namespace in config["namespaces"]),
        "" if config.get("no_new_keyring") else f"_ses.{id}",
        config.get("oom_score_adj"),
        [(one["type"], one["soft"], one["hard"]) for one in config.get("rlimits") or ()],
        config.get("capabilities") or {},
        (),
        False,
    )


def of_crun(folder: str, id: str, pid: int) -> Joining:
    """From crun's state folder. Raises the same. crun gives a new process nothing of init's
    limits, OOM score and keyring."""
    status, _ = _parse(read(f"{folder}/status").decode(), 0)
    config, _ = _parse(read(f"{folder}/config.json").decode(), 0)
    init = config.get("process") or {}
    only(config, _CRUN_KNOWN)
    only(config["linux"], _LINUX_KNOWN)
    only(init, _INIT_KNOWN)
    for name in config.get("annotations") or ():
        if name.startswith(_SWITCHES):
            raise Special(name)
    if status["pid"] != pid:
        raise Special("pid")
    path = status["cgroup-path"].strip("/")
    if path and not cgroups.is_unified():
        raise Special("control groups of v1")
    kinds = [one["type"] for one in config["linux"]["namespaces"]]
    return Joining(
        {"": f"{cgroups.ROOT}/{path}"} if path else {},
        _flags(_OCI_NAMESPACES.get(kind, kind) for kind in kinds),
        "",
        None,
        (),
        init.get("capabilities") or {},
        init.get("env") or (),
        True,
    )


BY_NAME = {"runc": of_runc, "crun": of_crun}
"""The runtimes that are known so closely."""


def only(what: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raises Special where anything else is set."""
    for key, value in what.items():
        if value and key not in known:
            raise Special(key)


def _flags(kinds: Iterable[str]) -> int:
    flags = 0
    for kind in kinds:
        if kind not in _NAMESPACES:
            raise Special(kind)
        flags |= _NAMESPACES[kind]
    if flags & _NEEDED != _NEEDED:
        raise Special("namespaces")
    return flags
