"""What each container uses, under containerd's metric names, read when somebody scrapes.

The names are those of containerd's cgroup collector: ``container_``, the statistic, the unit; the
labels ``container_id`` and ``namespace``. Most follow from the field names of the cgroups
messages; what does not is in the tables below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from prometheus_client.core import GaugeMetricFamily, Metric

from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2
from supervisord.contracts.tasks import Metric as TaskMetric

log = logging.getLogger(__name__)

Sample = tuple[str, str, TaskMetric]
"""Namespace, name of the runtime ("" where unknown), and the statistics of one task."""

_LABELS = ("container_id", "namespace")
_V1_MEMORY = {"hierarchical_swap_limit": "hierarchical_memsw_limit"}
_V1_WORDS = (("pg_pg_", "pgpg"), ("pg_fault", "pgfault"), ("pg_maj_fault", "pgmajfault"))
_V1_ENTRIES = {"usage": "usage", "swap": "swap", "kernel": "kernel", "kernel_tcp": "kerneltcp"}
_V1_BYTES = frozenset({"io_service_bytes_recursive"})
_V1_BLKIO = (
    "io_merged_recursive",
    "io_queued_recursive",
    "io_service_bytes_recursive",
    "io_service_time_recursive",
    "io_serviced_recursive",
    "io_time_recursive",
    "sectors_recursive",
)
_V2_MEMORY_LEFT_OUT = frozenset({"max_usage", "swap_max_usage"})


class Families:
    """Collects samples into gauge families, one per name."""

    def __init__(self) -> None:
        self._families: dict[str, GaugeMetricFamily] = {}

    def add(
        self, name: str, owner: Sequence[str], value: float, labels: dict[str, str] | None = None
    ) -> None:
        """One sample of ``container_NAME`` for the owner (container id, namespace)."""
        extra = labels or {}
        family = self._families.get(name)
        if family is None:
            family = GaugeMetricFamily(
                f"container_{name}",
                f"{name.replace('_', ' ')} of a container's control group",
                labels=(*_LABELS, *extra),
            )
            self._families[name] = family
        family.add_metric([*owner, *extra.values()], value)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())


class ContainerCollector:
    """``read`` answers the statistics of all tasks; it is called from the scraping thread."""

    def __init__(self, read: Callable[[], Sequence[tuple[str, TaskMetric]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families = Families()
        for namespace, metric in self._read():
            owner = (metric.container_id, namespace)
            try:
                if metric.data.type_url.endswith("io.containerd.cgroups.v1.Metrics"):
                    _cgroup_v1(families, owner, v1.Metrics.FromString(metric.data.value))
                elif metric.data.type_url.endswith("io.containerd.cgroups.v2.Metrics"):
                    _cgroup_v2(families, owner, v2.Metrics.FromString(metric.data.value))
            except DecodeError as error:
                log.warning("metrics not readable", extra={"id": owner[0], "error": error})
        yield from families


def _scalars(message: Message) -> Iterator[tuple[str, float]]:
    for field in message.DESCRIPTOR.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 and not field.is_repeated:
            yield field.name, float(getattr(message, field.name))


def _cgroup_v1(families: Families, owner: Sequence[str], stats: v1.Metrics) -> None:
    if stats.HasField("cpu"):
        for name, value in _scalars(stats.cpu.usage):
            families.add(f"cpu_{name}_nanoseconds", owner, value)
        for number, spent in enumerate(stats.cpu.usage.per_cpu):
            families.add("per_cpu_nanoseconds", owner, spent, {"cpu": str(number)})
        throttling = stats.cpu.throttling
        families.add("cpu_throttle_periods_total", owner, throttling.periods)
        families.add("cpu_throttled_periods_total", owner, throttling.throttled_periods)
        families.add("cpu_throttled_time_nanoseconds", owner, throttling.throttled_time)
    if stats.HasField("memory"):
        for name, value in _scalars(stats.memory):
            name = _V1_MEMORY.get(name, name)
            for ours, theirs in _V1_WORDS:
                name = name.replace(ours, theirs)
            families.add(f"memory_{name}_bytes", owner, value)
        for name, word in _V1_ENTRIES.items():
            entry: v1.MemoryEntry = getattr(stats.memory, name)
            families.add(f"memory_{word}_failcnt_total", owner, entry.failcnt)
            families.add(f"memory_{word}_limit_bytes", owner, entry.limit)
            families.add(f"memory_{word}_max_bytes", owner, entry.max)
            families.add(f"memory_{word}_usage_bytes", owner, entry.usage)
    if stats.HasField("memory_oom_control"):
        families.add("memory_oom_total", owner, stats.memory_oom_control.oom_kill)
    _pids(families, owner, stats)
    for name in _V1_BLKIO:
        unit = "bytes" if name in _V1_BYTES else "total"
        for entry_of in getattr(stats.blkio, name):
            labels = {
                "op": entry_of.op,
                "device": entry_of.device,
                "major": str(entry_of.major),
                "minor": str(entry_of.minor),
            }
            families.add(f"blkio_{name}_{unit}", owner, entry_of.value, labels)
    for page in stats.hugetlb:
        labels = {"page": page.pagesize}
        families.add("hugetlb_usage_bytes", owner, page.usage, labels)
        families.add("hugetlb_failcnt_total", owner, page.failcnt, labels)
        families.add("hugetlb_max_bytes", owner, page.max, labels)


def _cgroup_v2(families: Families, owner: Sequence[str], stats: v2.Metrics) -> None:
    if stats.HasField("cpu"):
        for name, value in _scalars(stats.cpu):
            unit = "microseconds" if name.endswith("_usec") else "total"
            families.add(f"cpu_{name}_{unit}", owner, value)
    if stats.HasField("memory"):
        for name, value in _scalars(stats.memory):
            if name not in _V2_MEMORY_LEFT_OUT:
                families.add(f"memory_{name}_bytes", owner, value)
    if stats.HasField("memory_events"):
        families.add("memory_oom_total", owner, stats.memory_events.oom)
    _pids(families, owner, stats)
    for device in stats.io.usage:
        labels = {"major": str(device.major), "minor": str(device.minor)}
        families.add("io_rbytes_bytes", owner, device.rbytes, labels)
        families.add("io_wbytes_bytes", owner, device.wbytes, labels)
        families.add("io_rios_total", owner, device.rios, labels)
        families.add("io_wios_total", owner, device.wios, labels)


def _pids(families: Families, owner: Sequence[str], stats: v1.Metrics | v2.Metrics) -> None:
    if stats.HasField("pids"):
        families.add("pids_limit", owner, stats.pids.limit)
        families.add("pids_current", owner, stats.pids.current)
