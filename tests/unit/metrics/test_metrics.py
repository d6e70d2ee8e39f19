"""What a scrape shows, fetched over HTTP."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from protos.io.containerd.cgroups.v1 import metrics_pb2 as v1
from protos.io.containerd.cgroups.v2 import metrics_pb2 as v2
from supervisord.contracts.errors import FailedPrecondition
from supervisord.contracts.namespaces import Namespace
from supervisord.contracts.tasks import Metric
from supervisord.contracts.typed import pack
from supervisord.metrics.server import MetricsServer
from supervisord.services.counters import CallCounters


class Namespaces:
    """Two namespaces."""

    def list(self) -> Sequence[Namespace]:
        return [Namespace("one"), Namespace("two")]


class Tasks:
    """A task in each, one per version of cgroups; or one that answers too late."""

    hangs = False

    async def metrics(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Metric]:
        if self.hangs:
            await asyncio.sleep(60)
        if namespace == "one":
            first = v1.Metrics()
            first.cpu.usage.total = 7
            first.cpu.usage.per_cpu.extend([3, 4])
            first.memory.pg_maj_fault = 5
            first.memory.usage.usage = 4096
            first.memory.kernel_tcp.limit = 11
            first.pids.current = 2
            first.blkio.io_service_bytes_recursive.add(
                op="Read", device="/dev/sda", major=8, minor=0, value=512
            )
            return [Metric("web", 1, pack(first))]
        second = v2.Metrics()
        second.cpu.usage_usec = 8
        second.cpu.nr_periods = 9
        second.memory.usage = 8192
        second.memory_events.oom = 1
        second.io.usage.add(major=8, minor=16, rbytes=100, wios=3)
        return [Metric("db", 1, pack(second))]


class Scraped:
    """A metrics server with its parts."""

    def __init__(self, server: MetricsServer, counters: CallCounters, tasks: Tasks) -> None:
        self.server, self.counters, self.tasks = server, counters, tasks

    async def fetch(self, path: str = "/v1/metrics") -> list[str]:
        def read() -> str:
            url = f"http://127.0.0.1:{self.server.port}{path}"
            with urllib.request.urlopen(url, timeout=10) as reply:
                text: str = reply.read().decode()
                return text

        return (await asyncio.to_thread(read)).splitlines()


@pytest.fixture
async def scraped() -> AsyncIterator[Scraped]:
    counters, tasks = CallCounters(), Tasks()
    any_tasks: Any = tasks
    any_namespaces: Any = Namespaces()
    server = await MetricsServer.open(
        "127.0.0.1:0",
        counters,
        histogram=True,
        tasks=any_tasks,
        namespaces=any_namespaces,
        events=lambda: {"/tasks/exit": 3},
        shims=lambda: 2,
    )
    yield Scraped(server, counters, tasks)
    await server.close()


async def test_calls_are_counted_in_the_go_convention(scraped: Scraped) -> None:
    stats = scraped.counters.method("s.v1.S", "Get", "unary")
    stats.started, stats.received, stats.sent = 2, 2, 1
    stats.finished(0, 0.02)
    stats.finished(5, 0.2)
    lines = await scraped.fetch()
    labels = 'grpc_method="Get",grpc_service="s.v1.S",grpc_type="unary"'
    for expected in (
        f"grpc_server_started_total{{{labels}}} 2.0",
        f"grpc_server_msg_sent_total{{{labels}}} 1.0",
        f'grpc_server_handled_total{{grpc_code="OK",{labels}}} 1.0',
        f'grpc_server_handled_total{{grpc_code="NotFound",{labels}}} 1.0',
        f'grpc_server_handling_seconds_bucket{{{labels},le="0.01"}} 0.0',
        f'grpc_server_handling_seconds_bucket{{{labels},le="0.025"}} 1.0',
        f'grpc_server_handling_seconds_bucket{{{labels},le="+Inf"}} 2.0',
        f"grpc_server_handling_seconds_count{{{labels}}} 2.0",
        f"grpc_server_handling_seconds_sum{{{labels}}} 0.22",
    ):
        assert expected in lines


async def test_containers_have_containerds_names_and_labels(scraped: Scraped) -> None:
    lines = await scraped.fetch("/metrics")
    web = 'container_id="web",namespace="one"'
    db = 'container_id="db",namespace="two"'
    for expected in (
        f"container_cpu_total_nanoseconds{{{web}}} 7.0",
        'container_per_cpu_nanoseconds{container_id="web",cpu="1",namespace="one"} 4.0',
        f"container_memory_pgmajfault_bytes{{{web}}} 5.0",
        f"container_memory_usage_usage_bytes{{{web}}} 4096.0",
        f"container_memory_kerneltcp_limit_bytes{{{web}}} 11.0",
        f"container_pids_current{{{web}}} 2.0",
        'container_blkio_io_service_bytes_recursive_bytes{container_id="web",device="/dev/sda",'
        'major="8",minor="0",namespace="one",op="Read"} 512.0',
        f"container_cpu_usage_usec_microseconds{{{db}}} 8.0",
        f"container_cpu_nr_periods_total{{{db}}} 9.0",
        f"container_memory_usage_bytes{{{db}}} 8192.0",
        f"container_memory_oom_total{{{db}}} 1.0",
        'container_io_rbytes_bytes{container_id="db",major="8",minor="16",namespace="two"} 100.0',
    ):
        assert expected in lines


async def test_the_daemon_tells_of_itself(scraped: Scraped) -> None:
    lines = await scraped.fetch()
    assert 'supervisord_events_published_total{topic="/tasks/exit"} 3.0' in lines
    assert "supervisord_shims_running 2.0" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert any(line.startswith("supervisord_event_loop_lag_seconds_count ") for line in lines)
    assert not any("_created" in line for line in lines)


async def test_a_stuck_engine_costs_the_containers_not_the_scrape(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisord.metrics.server._READ_TIME", 0.1)
    scraped.tasks.hangs = True
    lines = await scraped.fetch()
    assert "supervisord_shims_running 2.0" in lines
    assert not any(line.startswith("container_") for line in lines)


async def test_other_paths_are_not_found(scraped: Scraped) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        await scraped.fetch("/other")
    assert refused.value.code == 404
    refused.value.close()


async def test_a_taken_port_is_refused(scraped: Scraped) -> None:
    with pytest.raises(FailedPrecondition, match=r"metrics\.address: cannot listen"):
        await MetricsServer.open(
            f"127.0.0.1:{scraped.server.port}", CallCounters(), histogram=False
        )
