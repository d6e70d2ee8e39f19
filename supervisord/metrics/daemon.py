"""What the daemon itself does: events, shims, the lag of its event loop, its build."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import Histogram
from prometheus_client.registry import CollectorRegistry

_INTERVAL = 0.5
_LAG_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Totals(Protocol):
    """What garbage collections did since the start (``gc.scheduler.Totals``)."""

    succeeded: int
    failed: int
    seconds: float
    deleted: int


class DaemonCollector:
    """Reads counts that the engines keep. ``events`` answers how many events each topic had,
    ``shims`` how many shims run, ``collections`` what garbage collection did, ``damaged`` has the
    damaged records that were met, by noun."""

    def __init__(
        self,
        version: str,
        events: Callable[[], Mapping[str, int]],
        shims: Callable[[], int],
        collections: Totals | None = None,
        damaged: Mapping[str, int] | None = None,
    ) -> None:
        self._version = version
        self._damaged = damaged or {}
        self._events = events
        self._shims = shims
        self._collections = collections

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "supervisord_build_info", "Always 1; the labels say what runs.", labels=("version",)
        )
        build.add_metric([self._version], 1)
        yield build
        events = CounterMetricFamily(
            "supervisord_events_published", "Events published, by topic.", labels=("topic",)
        )
        for topic, count in sorted(self._events().items()):
            events.add_metric([topic], count)
        yield events
        yield GaugeMetricFamily(
            "supervisord_shims_running", "Shims that the daemon is connected to.", self._shims()
        )
        damaged = CounterMetricFamily(
            "supervisord_damaged_records",
            "How often a list left out a record that is damaged, by noun.",
            labels=("noun",),
        )
        for noun, count in sorted(self._damaged.items()):
            damaged.add_metric([noun], count)
        yield damaged
        if self._collections is not None:
            yield from _collected(self._collections)


def _collected(totals: Totals) -> Iterator[Metric]:
    runs = CounterMetricFamily(
        "supervisord_gc_collections", "Garbage collections, by result.", labels=("result",)
    )
    runs.add_metric(["succeeded"], totals.succeeded)
    runs.add_metric(["failed"], totals.failed)
    yield runs
    yield CounterMetricFamily(
        "supervisord_gc_seconds", "Seconds spent in garbage collections.", totals.seconds
    )
    yield CounterMetricFamily(
        "supervisord_gc_deleted", "Records that garbage collections deleted.", totals.deleted
    )


class LoopLag:
    """Measures how late the event loop is, twice a second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(
            "supervisord_event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    async def measure(self) -> None:
        """Runs until cancelled."""
        while True:
            begin = perf_counter()
            await asyncio.sleep(_INTERVAL)
            self._histogram.observe(max(0.0, perf_counter() - begin - _INTERVAL))
