"""The flags of ``sctl tasks update``, and the OCI LinuxResources (runtime specification,
config-linux) that they make. Light: ``--help`` needs no gRPC for them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CliError
from .values import limit, require

RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
_PERIOD = 100_000


class _Flag(NamedTuple):
    names: tuple[str, ...]
    type: Any
    metavar: str
    place: tuple[str, str]
    """Where it goes in LinuxResources."""
    help: str


# The names are docker's.
_FLAGS = (
    _Flag(("--memory", "-m"), limit, "SIZE", ("memory", "limit"),
          "in bytes, or 64M, 1G; -1 for no limit"),
    _Flag(("--memory-reservation",), limit, "SIZE", ("memory", "reservation"),
          "what it is left with when memory is short"),
    _Flag(("--memory-swap",), limit, "SIZE", ("memory", "swap"),
          "memory and swap together; -1 for no limit"),
    _Flag(("--cpu-shares", "-c"), int, "N", ("cpu", "shares"), "weight"),
    _Flag(("--cpu-quota",), int, "US", ("cpu", "quota"), "time in each period; -1 for no limit"),
    _Flag(("--cpu-period",), int, "US", ("cpu", "period"), "length of a period"),
    _Flag(("--cpuset-cpus",), str, "LIST", ("cpu", "cpus"), "such as 0-1,3"),
    _Flag(("--cpuset-mems",), str, "LIST", ("cpu", "mems"), "nodes of memory, such as 0"),
    _Flag(("--pids-limit",), int, "N", ("pids", "limit"),
          "processes and threads; -1 for no limit"),
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    for flag in _FLAGS:
        parser.add_argument(
            *flag.names, type=flag.type, default=None, metavar=flag.metavar, help=flag.help
        )
    parser.add_argument(
        "--cpus", type=float, default=None, metavar="N", help="how much of the CPUs, such as 1.5"
    )
    parser.add_argument(
        "--resources",
        metavar="FILE",
        help="OCI LinuxResources as JSON (-: stdin); a flag counts more than what it says",
    )


def resources_of(args: argparse.Namespace) -> dict[str, Any]:
    """LinuxResources with what the flags say and nothing else.

    Raises CliError for flags that contradict each other, for none, and for an unreadable file."""
    resources = _read(args.resources) if args.resources else {}
    for flag in _FLAGS:
        value = getattr(args, flag.names[0].removeprefix("--").replace("-", "_"))
        if value is not None:
            _set(resources, flag.place, value)
    if args.cpus is not None:
        require(
            args.cpu_quota is None and args.cpu_period is None,
            "--cpus and --cpu-quota/--cpu-period exclude each other",
        )
        require(0.01 <= args.cpus < 1e6, f"--cpus {args.cpus:g}: at least 0.01")
        _set(resources, ("cpu", "quota"), round(args.cpus * _PERIOD))
        _set(resources, ("cpu", "period"), _PERIOD)
    require(resources, "nothing to change: give a limit, or --resources FILE")
    return resources


def _set(resources: dict[str, Any], place: tuple[str, str], value: object) -> None:
    group, name = place
    values = resources.setdefault(group, {})
    require(isinstance(values, dict), f"--resources: {group} is not an object")
    values[name] = value


def _read(path: str) -> dict[str, Any]:
    try:
        value = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CliError(f"--resources {path}: {error}") from None
    require(isinstance(value, dict), f"--resources {path}: not a JSON object")
    return dict(value)
