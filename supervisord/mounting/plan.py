"""Which mounts of a list the manager makes, and how: decided before anything is done.

The rules are those of containerd's mount manager. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from supervisord.contracts.snapshots import Mount

PREFIXES = ("format", "mkfs", "mkdir")
"""What can be done to a mount before it is made; several are done in their order in the type."""


@dataclass(frozen=True, slots=True)
class Step:
    """One mount: what is done to it first, and the type that is left then, with the name of its
    handler ("" for the kernel's own types)."""

    prefixes: tuple[str, ...]
    type: str
    handler: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All mounts; the first ``made`` are the manager's."""

    steps: tuple[Step, ...]
    made: int


def plan(
    mounts: Sequence[Mount],
    handlers: Collection[str],
    *,
    allowed: Collection[str] = (),
    temporary: bool = False,
) -> Plan | None:
    """None where nothing needs the manager. A mount with a prefix needs all before it to be
    made; the one itself remains a system mount, unless it has a handler."""
    made = -1
    steps: list[Step] = []
    for at, mount in enumerate(mounts):
        step = _step(mount.type, handlers)
        for prefix in step.prefixes:
            if f"{prefix}/*" not in allowed and mount.type not in allowed:
                made = at
        if temporary or (step.handler and step.handler not in allowed):
            made = at + 1
        steps.append(step)
    return Plan(tuple(steps), made) if made >= 0 else None


def _step(type: str, handlers: Collection[str]) -> Step:
    prefixes: list[str] = []
    rest = type
    while True:
        prefix, slash, after = rest.partition("/")
        if not slash or prefix not in PREFIXES:
            return Step(tuple(prefixes), rest, rest if rest in handlers else "")
        prefixes.append(prefix)
        rest = after
