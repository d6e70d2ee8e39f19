"""Metrics of both kinds of cgroups."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any

from protos.io.containerd.cgroups.v1 import metrics_pb2 as first
from protos.io.containerd.cgroups.v2 import metrics_pb2 as second
from supervisord.cli.errors import CliError
from supervisord.cli.measure import Usage, decode, rows, usage

V1 = first.Metrics(
    cpu=first.CPUStat(usage=first.CPUUsage(total=2_500_000_000, per_cpu=[1, 2])),
    memory=first.MemoryStat(usage=first.MemoryEntry(usage=4096, limit=9223372036854771712)),
    pids=first.PidsStat(current=3),
    blkio=first.BlkIOStat(
        io_service_bytes_recursive=[
            first.BlkIOEntry(op="Read", value=5),
            first.BlkIOEntry(op="Write", value=7),
            first.BlkIOEntry(op="Total", value=12),
        ]
    ),
)
V2 = second.Metrics(
    cpu=second.CPUStat(usage_usec=2_500_000),
    memory=second.MemoryStat(usage=4096, usage_limit=1 << 20),
    pids=second.PidsStat(current=3, limit=9),
    io=second.IOStat(usage=[second.IOEntry(rbytes=5, wbytes=7), second.IOEntry(rbytes=1)]),
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [(V1, Usage(2.5, 4096, 0, 3, 5, 7)), (V2, Usage(2.5, 4096, 1 << 20, 3, 6, 7))],
    ids=["v1", "v2"],
)
def test_both_kinds_in_common_units(
    message: first.Metrics | second.Metrics, expected: Usage
) -> None:
    packed = Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
    assert usage(decode(packed)) == expected


def test_rows_have_the_names_of_the_files() -> None:
    assert dict(rows(V1))["memory.usage_in_bytes"] == "4096"
    assert dict(rows(V1))["cpuacct.usage_percpu"] == "[1, 2]"
    assert dict(rows(V2))["cpu.usage_usec"] == "2500000"
    assert dict(rows(V2))["pids.limit"] == "9"


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(CliError, match="unknown type"):
        decode(Any(type_url="x.y"))
