"""Reading the metrics of a task: cgroup v1 and v2 messages, as rows and as the few numbers that
``top`` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import CliError

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

# A limit this large is the kernel's way to say that there is none.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task uses: cpu in seconds so far, memory and io in bytes; a limit of 0 is none."""

    cpu: float
    memory: int
    memory_limit: int
    pids: int
    read: int
    written: int


def decode(value: AnyMessage) -> Any:
    """The Metrics message inside. Raises CliError for another type."""
    name = value.type_url.rpartition("/")[2]
    message: Any
    if name == "io.containerd.cgroups.v1.Metrics":
        from protos.io.containerd.cgroups.v1.metrics_pb2 import Metrics as First

        message = First()
    elif name == "io.containerd.cgroups.v2.Metrics":
        from protos.io.containerd.cgroups.v2.metrics_pb2 import Metrics as Second

        message = Second()
    else:
        raise CliError(f"metrics of the unknown type {name!r}")
    message.ParseFromString(value.value)
    return message


def usage(message: Any) -> Usage:
    """The numbers of either kind of message in common units."""
    if message.DESCRIPTOR.full_name.startswith("io.containerd.cgroups.v1"):
        moved = {"read": 0, "write": 0}
        for entry in message.blkio.io_service_bytes_recursive:
            if entry.op.lower() in moved:
                moved[entry.op.lower()] += entry.value
        limit = message.memory.usage.limit
        return Usage(
            message.cpu.usage.total / 1e9,
            message.memory.usage.usage,
            0 if limit >= _UNLIMITED else limit,
            message.pids.current,
            moved["read"],
            moved["write"],
        )
    limit = message.memory.usage_limit
    return Usage(
        message.cpu.usage_usec / 1e6,
        message.memory.usage,
        0 if limit >= _UNLIMITED else limit,
        message.pids.current,
        sum(entry.rbytes for entry in message.io.usage),
        sum(entry.wbytes for entry in message.io.usage),
    )


def rows(message: Any) -> Iterator[tuple[str, str]]:
    """Names as the cgroup files have them, with their values."""
    if message.DESCRIPTOR.full_name.startswith("io.containerd.cgroups.v1"):
        yield "memory.usage_in_bytes", str(message.memory.usage.usage)
        yield "memory.limit_in_bytes", str(message.memory.usage.limit)
        yield "memory.stat.cache", str(message.memory.total_cache)
        yield "cpuacct.usage", str(message.cpu.usage.total)
        yield "cpuacct.usage_percpu", str(list(message.cpu.usage.per_cpu))
    else:
        for name in ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled",
                     "throttled_usec"):  # fmt: skip
            yield f"cpu.{name}", str(getattr(message.cpu, name))
        for name in ("usage", "usage_limit", "swap_usage", "swap_limit"):
            yield f"memory.{name}", str(getattr(message.memory, name))
    yield "pids.current", str(message.pids.current)
    yield "pids.limit", str(message.pids.limit)
