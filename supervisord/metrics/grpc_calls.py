"""What the gRPC services did, from their counters, under the names of go-grpc-prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from supervisord.services.counters import BUCKETS, CallCounters, MethodCounters

_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_CODES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)


class GrpcCollector:
    """Reads the counters at each scrape; ``histogram`` adds how long the calls took."""

    def __init__(self, counters: CallCounters, *, histogram: bool) -> None:
        self._counters = counters
        self._histogram = histogram

    def collect(self) -> Iterator[Metric]:
        methods = self._counters.methods
        yield _totals(
            "grpc_server_started",
            "RPCs started on the server.",
            [(method, method.started) for method in methods],
        )
        yield _totals(
            "grpc_server_msg_received",
            "Messages received from clients.",
            [(method, method.received) for method in methods],
        )
        yield _totals(
            "grpc_server_msg_sent",
            "Messages sent to clients.",
            [(method, method.sent) for method in methods],
        )
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "RPCs completed on the server, whatever their outcome.",
            labels=(*_METHOD, "grpc_code"),
        )
        for method in methods:
            for code, count in {0: 0, **method.handled}.items():
                handled.add_metric([*_labels(method), _CODES[code]], count)
        yield handled
        if self._histogram:
            yield _durations(methods)


def _labels(method: MethodCounters) -> list[str]:
    return [method.kind, method.service, method.method]


def _totals(name: str, text: str, values: list[tuple[MethodCounters, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=_METHOD)
    for method, value in values:
        family.add_metric(_labels(method), value)
    return family


def _durations(methods: list[MethodCounters]) -> Metric:
    family = HistogramMetricFamily(
        "grpc_server_handling_seconds",
        "Seconds that the server took to handle RPCs.",
        labels=_METHOD,
    )
    bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
    for method in methods:
        below, buckets = 0, []
        for bound, count in zip(bounds, method.buckets, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(_labels(method), buckets, method.seconds)
    return family
