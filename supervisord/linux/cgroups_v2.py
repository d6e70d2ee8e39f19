"""Statistics of the unified hierarchy as ``io.containerd.cgroups.v2.Metrics``."""

from __future__ import annotations

import os

from protos.io.containerd.cgroups.v2 import metrics_pb2 as pb
from supervisord.contracts.errors import NotFound

from .cgroups import MAX, number, page_sizes, read, table
from .cgroups_v1 import rdma_entries

_MEMORY_FIELDS = {
    field.name for field in pb.MemoryStat.DESCRIPTOR.fields if field.type == field.TYPE_UINT64
}
_MEMORY_FILES = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}
_CPU_FIELDS = {field.name for field in pb.CPUStat.DESCRIPTOR.fields} - {"psi"}
_EVENT_FIELDS = {field.name for field in pb.MemoryEvents.DESCRIPTOR.fields}


def metrics(folder: str) -> pb.Metrics:
    """All that the enabled controllers of one group tell. Raises NotFound when it is gone."""
    if not os.access(folder, os.F_OK):
        raise NotFound("cgroup does not exist")
    result = pb.Metrics()
    result.pids.current = number(f"{folder}/pids.current", MAX) or 0
    result.pids.limit = number(f"{folder}/pids.max", MAX) or 0
    result.cpu.SetInParent()
    for name, value in table(f"{folder}/cpu.stat").items():
        if name in _CPU_FIELDS:
            setattr(result.cpu, name, value)
    _pressure(f"{folder}/cpu.pressure", result.cpu)
    _memory(folder, result)
    result.io.SetInParent()
    _io(folder, result.io)
    _pressure(f"{folder}/io.pressure", result.io)
    result.rdma.SetInParent()
    for entries, name in ((result.rdma.current, "current"), (result.rdma.limit, "max")):
        for device, handles, objects in rdma_entries(f"{folder}/rdma.{name}"):
            entries.add(device=device, hca_handles=handles, hca_objects=objects)
    for size in page_sizes(folder, "current"):
        result.hugetlb.add(
            pagesize=size,
            current=number(f"{folder}/hugetlb.{size}.current", MAX) or 0,
            max=number(f"{folder}/hugetlb.{size}.max", MAX) or 0,
            failcnt=table(f"{folder}/hugetlb.{size}.events").get("max", 0),
        )
    return result


def _memory(folder: str, result: pb.Metrics) -> None:
    values = table(f"{folder}/memory.stat")
    memory = result.memory
    memory.SetInParent()
    for name, value in values.items():
        if name in _MEMORY_FIELDS:
            setattr(memory, name, value)
    for name, file in _MEMORY_FILES.items():
        setattr(memory, name, number(f"{folder}/{file}", MAX) or 0)
    _pressure(f"{folder}/memory.pressure", memory)
    events = table(f"{folder}/memory.events")
    if events:
        known = {name: value for name, value in events.items() if name in _EVENT_FIELDS}
        result.memory_events.CopyFrom(pb.MemoryEvents(**known))


def _io(folder: str, stat: pb.IOStat) -> None:
    for line in (read(f"{folder}/io.stat") or "").splitlines():
        device, *pairs = line.split()
        major, colon, minor = device.partition(":")
        if not colon or not pairs:
            continue
        values = dict(pair.partition("=")[::2] for pair in pairs)
        numbers = {
            name: int(values.get(name) or 0) for name in ("rbytes", "wbytes", "rios", "wios")
        }
        stat.usage.add(major=int(major), minor=int(minor), **numbers)


def _pressure(path: str, owner: pb.CPUStat | pb.MemoryStat | pb.IOStat) -> None:
    for line in (read(path) or "").splitlines():
        kind, *pairs = line.split()
        values = dict(pair.partition("=")[::2] for pair in pairs)
        data = owner.psi.full if kind == "full" else owner.psi.some
        data.avg10 = float(values.get("avg10") or 0)
        data.avg60 = float(values.get("avg60") or 0)
        data.avg300 = float(values.get("avg300") or 0)
        data.total = int(values.get("total") or 0)
