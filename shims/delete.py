"""Deletes an ended container by hand, where that is all that ``runc delete`` would do.

Starting runc costs more than its work: it removes the control groups, which are empty, and its
state folder. The folder's ``state.json`` says which groups. Where anything there is not as
expected, nothing has been touched that the runtime's own command needs, and that is called.
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
from .bundle import read, remove

if TYPE_CHECKING:
    from .container import Container

_STATE = "state.json"
_TRIES = 4
_PAUSE = 0.001
"""A process that has been reaped may take a moment more to leave its group."""

_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


async def delete(container: Container) -> bool:
    """Whether runc holds nothing of the container any more. Never raises for what it finds."""
    if not _simple(container):
        return False
    folder = f"{container.runtime.root}/{container.id}"
    try:
        if os.listdir(folder) != [_STATE]:
            return False
        state, _ = _parse(read(f"{folder}/{_STATE}").decode(), 0)
        groups = _groups(state, container)
        for group in groups or ():
            await _remove_group(container, group)
        if groups is None:
            return False
        remove(f"{folder}/{_STATE}")
        os.rmdir(folder)
    except (OSError, ValueError, StopIteration, LookupError, TypeError, AttributeError) as error:
        log.debug("left to runc", id=container.id, error=repr(error))
        return False
    return True


def _simple(container: Container) -> bool:
    """Whether init is gone and, being the first of a pid namespace, has taken all with it."""
    init, runtime = container.init, container.runtime
    return (
        runtime.is_runc
        and not runtime.systemd_cgroup
        and container.private_pids
        and init.exit is not None
        and not container.bundle.mentions("poststop")
    )


def _groups(state: dict[str, Any], container: Container) -> list[str] | None:
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
    for group in groups:
        if not group.startswith(f"{cgroups.ROOT}/") or "/../" in f"{group}/":
            return None
    return groups


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
