"""Statistics of cgroup v1 hierarchies as ``io.containerd.cgroups.v1.Metrics``.

Fields are filled from the files that containerd's own v1 reader uses. A controller that is not
mounted, and a file that the kernel does not have, leave their fields out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from protos.io.containerd.cgroups.v1 import metrics_pb2 as pb
from supervisord.contracts.errors import NotFound

from .cgroups import Cgroup, number, page_sizes, read, table

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_MEMORY = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_MEMORY |= {f"total_{file}": f"total_{name}" for file, name in list(_MEMORY.items())[:4]}
_MEMORY_FIELDS = {
    field.name for field in pb.MemoryStat.DESCRIPTOR.fields if field.type == field.TYPE_UINT64
}
_ENTRIES = (
    ("usage", "memory"),
    ("swap", "memory.memsw"),
    ("kernel", "memory.kmem"),
    ("kernel_tcp", "memory.kmem.tcp"),
)
_BLKIO = {
    "io_service_bytes_recursive": "io_service_bytes_recursive",
    "io_serviced_recursive": "io_serviced_recursive",
    "io_queued_recursive": "io_queued_recursive",
    "io_service_time_recursive": "io_service_time_recursive",
    "io_wait_time_recursive": "io_wait_time_recursive",
    "io_merged_recursive": "io_merged_recursive",
    "io_time_recursive": "time_recursive",
    "sectors_recursive": "sectors_recursive",
}
_THROTTLE = {
    "io_service_bytes_recursive": "throttle.io_service_bytes",
    "io_serviced_recursive": "throttle.io_serviced",
}


def metrics(cgroup: Cgroup) -> pb.Metrics:
    """All that the mounted controllers tell. Raises NotFound when the group is gone."""
    folders = dict(_folders(cgroup))
    if not folders:
        raise NotFound("cgroup does not exist")
    result = pb.Metrics()
    result.cpu.usage.SetInParent()
    result.cpu.throttling.SetInParent()
    if folder := folders.get("cpuacct"):
        _cpuacct(folder, result.cpu.usage)
    if folder := folders.get("cpu"):
        _throttling(folder, result.cpu.throttling)
    if folder := folders.get("memory"):
        _memory(folder, result)
    if folder := folders.get("pids"):
        _pids(folder, result)
    if folder := folders.get("blkio"):
        _blkio(folder, result.blkio)
    if folder := folders.get("hugetlb"):
        _hugetlb(folder, result)
    if folder := folders.get("rdma"):
        _rdma(folder, result.rdma)
    return result


def _folders(cgroup: Cgroup) -> Iterator[tuple[str, str]]:
    for controller in ("cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb", "rdma"):
        if controller in cgroup.paths:
            folder = cgroup.folder(controller)
            if os.access(folder, os.F_OK):
                yield controller, folder


def _cpuacct(folder: str, usage: pb.CPUUsage) -> None:
    ticks = table(f"{folder}/cpuacct.stat")
    usage.user = ticks.get("user", 0) * _TICK_NS
    usage.kernel = ticks.get("system", 0) * _TICK_NS
    usage.total = number(f"{folder}/cpuacct.usage", 0) or 0
    usage.per_cpu.extend(int(v) for v in (read(f"{folder}/cpuacct.usage_percpu") or "").split())


def _throttling(folder: str, throttle: pb.Throttle) -> None:
    values = table(f"{folder}/cpu.stat")
    throttle.periods = values.get("nr_periods", 0)
    throttle.throttled_periods = values.get("nr_throttled", 0)
    throttle.throttled_time = values.get("throttled_time", 0)


def _memory(folder: str, result: pb.Metrics) -> None:
    memory = result.memory
    for key, value in table(f"{folder}/memory.stat").items():
        name = _MEMORY.get(key, key)
        if name in _MEMORY_FIELDS:
            setattr(memory, name, value)
    for name, prefix in _ENTRIES:
        entry: pb.MemoryEntry = getattr(memory, name)
        entry.SetInParent()
        entry.usage = number(f"{folder}/{prefix}.usage_in_bytes", 0) or 0
        entry.max = number(f"{folder}/{prefix}.max_usage_in_bytes", 0) or 0
        entry.failcnt = number(f"{folder}/{prefix}.failcnt", 0) or 0
        entry.limit = number(f"{folder}/{prefix}.limit_in_bytes", 0) or 0
    control = table(f"{folder}/memory.oom_control")
    result.memory_oom_control.oom_kill_disable = control.get("oom_kill_disable", 0)
    result.memory_oom_control.under_oom = control.get("under_oom", 0)
    result.memory_oom_control.oom_kill = control.get("oom_kill", 0)


def _pids(folder: str, result: pb.Metrics) -> None:
    current = number(f"{folder}/pids.current", 0)
    if current is not None:
        # an unlimited group has the limit 0 in v1 metrics
        result.pids.current = current
        result.pids.limit = number(f"{folder}/pids.max", 0) or 0


def _blkio(folder: str, stat: pb.BlkIOStat) -> None:
    stat.SetInParent()
    devices = _devices()
    if os.access(f"{folder}/blkio.io_serviced_recursive", os.F_OK):
        found = [_entries(folder, name, getattr(stat, f), devices) for f, name in _BLKIO.items()]
        if any(found):
            return
    for field, name in _THROTTLE.items():
        _entries(folder, name, getattr(stat, field), devices)


def _entries(folder: str, name: str, entries: object, devices: dict[tuple[int, int], str]) -> bool:
    lines = (read(f"{folder}/blkio.{name}") or "").splitlines()
    for line in lines:
        fields = line.replace(":", " ").split()
        if len(fields) < 3:  # the total over all devices
            continue
        major, minor = int(fields[0]), int(fields[1])
        entries.add(  # type: ignore[attr-defined]
            op=fields[2] if len(fields) == 4 else "",
            device=devices.get((major, minor), ""),
            major=major,
            minor=minor,
            value=int(fields[-1]),
        )
    return len(lines) > 1


def _devices() -> dict[tuple[int, int], str]:
    devices: dict[tuple[int, int], str] = {}
    for line in (read("/proc/partitions") or "").splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[0].isdigit():
            devices[int(fields[0]), int(fields[1])] = f"/dev/{fields[3]}"
    return devices


def _hugetlb(folder: str, result: pb.Metrics) -> None:
    for size in page_sizes(folder, "usage_in_bytes"):
        result.hugetlb.add(
            pagesize=size,
            usage=number(f"{folder}/hugetlb.{size}.usage_in_bytes", 0) or 0,
            max=number(f"{folder}/hugetlb.{size}.max_usage_in_bytes", 0) or 0,
            failcnt=number(f"{folder}/hugetlb.{size}.failcnt", 0) or 0,
        )


def _rdma(folder: str, stat: pb.RdmaStat) -> None:
    for entries, name in ((stat.current, "current"), (stat.limit, "max")):
        for device, handles, objects in rdma_entries(f"{folder}/rdma.{name}"):
            entries.add(device=device, hca_handles=handles, hca_objects=objects)


def rdma_entries(path: str) -> Iterator[tuple[str, int, int]]:
    """Device, handles and objects of each line; ``max`` is the largest 32-bit number."""
    for line in (read(path) or "").splitlines():
        device, *pairs = line.split()
        values = dict(pair.partition("=")[::2] for pair in pairs)
        handles, objects = (
            (1 << 32) - 1 if value == "max" else int(value or 0)
            for value in (values.get("hca_handle", ""), values.get("hca_object", ""))
        )
        yield device, handles, objects
