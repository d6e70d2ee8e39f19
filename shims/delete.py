"""Deletes an ended container by hand, where that is all that the runtime's ``delete`` would do.

Starting runc or crun costs more than its work: it removes the control groups, which are empty, and
its state folder. A file in that folder, ``state.json`` of runc and ``status`` of crun, says which
groups. Where anything there is not as expected, nothing has been touched that the runtime's own
command needs, and that is called.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH106, PTH208
from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

from supervisord.linux import cgroups

from . import log
from .bundle import mentions, read, remove

if TYPE_CHECKING:
    from .container import Container

_FILES = {"runc": ("state.json",), "crun": ("config.json", "status")}
"""All that each keeps of a container that has been started; the last one tells of the rest."""
_CRUN_KNOWN = frozenset(
    (
        *("pid", "process-start-time", "cgroup-path", "scope", "rootfs", "systemd-cgroup"),
        *("bundle", "created", "owner", "detached", "external_descriptors"),
    )
)
"""What ``status`` of crun 1.8.1 holds."""
_TRIES = 4
_PAUSE = 0.001
"""A process that has been reaped may take a moment more to leave its group."""

_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


async def delete(container: Container) -> bool:
    """Whether the runtime holds nothing of the container any more. Never raises for what it
    finds."""
    name = container.runtime.name
    files = _FILES.get(name)
    if files is None or not _simple(container):
        return False
    folder = f"{container.runtime.root}/{container.id}"
    try:
        if sorted(os.listdir(folder)) != list(files):
            return False
        if mentions(container.bundle.path if name == "runc" else folder, "poststop"):
            return False
        state, _ = _parse(read(f"{folder}/{files[-1]}").decode(), 0)
        groups = (_groups_of_runc if name == "runc" else _groups_of_crun)(state, container)
        for group in groups or ():
            await _remove_group(container, group)
        if groups is None:
            return False
        for file in files:
            remove(f"{folder}/{file}")
        os.rmdir(folder)
    except (OSError, ValueError, StopIteration, LookupError, TypeError, AttributeError) as error:
        log.debug("left to the runtime", id=container.id, error=repr(error))
        return False
    return True


def _simple(container: Container) -> bool:
    """Whether init is gone and, being the first of a pid namespace, has taken all with it."""
    init, runtime = container.init, container.runtime
    return not runtime.systemd_cgroup and container.private_pids and init.exit is not None


def _groups_of_runc(state: dict[str, Any], container: Container) -> list[str] | None:
    """The folders of the control groups; None where runc has more to do than to remove them."""
    config = state["config"]
    hooks = config.get("Hooks") or config.get("hooks") or {}
    groups = list(state["cgroup_paths"].values())
    if (
        state["id"] != container.id
        or state["init_process_pid"] != container.init.pid
        or state.get("intel_rdt_path")
        or state.get("rootless")
        or config["cgroups"].get("Systemd")
        or config["cgroups"].get("systemd")
        or hooks.get("poststop")
    ):
        return None
    return groups if all(_is_below_root(group) for group in groups) else None


def _groups_of_crun(status: dict[str, Any], container: Container) -> list[str] | None:
    """The same for crun. On v1 it does not note which hierarchies it has used."""
    if (
        status["pid"] != container.init.pid
        or status["systemd-cgroup"]
        or status["scope"]
        or any(value and key not in _CRUN_KNOWN for key, value in status.items())
    ):
        return None
    path = status["cgroup-path"].strip("/")
    if not path:
        return []
    group = f"{cgroups.ROOT}/{path}"
    return [group] if cgroups.is_unified() and _is_below_root(group) else None


def _is_below_root(group: str) -> bool:
    return group.startswith(f"{cgroups.ROOT}/") and "/../" not in f"{group}/"


async def _remove_group(container: Container, folder: str) -> None:
    """Raises OSError when it has processes or groups below it."""
    for again in range(_TRIES):
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or again == _TRIES - 1:
                raise
        await container.loop.sleep(_PAUSE * (again + 1))
