"""What the containers of a sandbox use together, as one Metrics message of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supervisord.contracts.errors import NotFound
from supervisord.linux import cgroups

_V1 = (
    "pids.current",
    "cpu.usage.total",
    "cpu.usage.kernel",
    "cpu.usage.user",
    "cpu.throttling.throttled_periods",
    "cpu.throttling.throttled_time",
    "memory.usage.usage",
    "memory.swap.usage",
    "memory.rss",
    "memory.cache",
    "memory.total_rss",
    "memory.total_cache",
    "memory.total_inactive_file",
    "memory.pg_fault",
    "memory.pg_maj_fault",
)
_V2 = (
    "pids.current",
    "cpu.usage_usec",
    "cpu.user_usec",
    "cpu.system_usec",
    "cpu.nr_throttled",
    "cpu.throttled_usec",
    "memory.usage",
    "memory.swap_usage",
    "memory.anon",
    "memory.file",
    "memory.inactive_file",
    "memory.pgfault",
    "memory.pgmajfault",
)
"""What can be added up; limits and peaks cannot."""


def together(groups: Sequence[cgroups.Cgroup]) -> Any:
    """The sums over the groups; of a group that is gone nothing is counted."""
    unified = cgroups.is_unified()
    total = _empty(unified)
    for group in groups:
        try:
            metrics = cgroups.stats(group)
        except NotFound:
            continue
        for path in _V2 if unified else _V1:
            _add(total, metrics, path)
    return total


def _empty(unified: bool) -> Any:
    if unified:
        from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2

        return v2.Metrics()
    from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1

    return v1.Metrics()


def _add(total: Any, one: Any, path: str) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not one.HasField(parent):
            return
        total, one = getattr(total, parent), getattr(one, parent)
    setattr(total, name, getattr(total, name) + getattr(one, name))
