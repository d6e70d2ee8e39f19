"""Counts of what the gRPC services did, in the Go convention of go-grpc-prometheus.

``services.server`` writes them on every call, so they are plain numbers without locks or labels;
``metrics`` reads them at a scrape. They exist whether or not metrics are served.
"""

from __future__ import annotations

from bisect import bisect_left

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: the defaults of Prometheus' Go client."""


class MethodCounters:
    """One method's counters. ``kind`` is unary, client_stream, server_stream or bidi_stream."""

    __slots__ = (
        "buckets",
        "handled",
        "kind",
        "method",
        "received",
        "seconds",
        "sent",
        "service",
        "started",
    )

    def __init__(self, service: str, method: str, kind: str) -> None:
        self.service = service
        self.method = method
        self.kind = kind
        self.started = 0
        self.received = 0
        self.sent = 0
        self.handled: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def finished(self, code: int, seconds: float) -> None:
        """Counts the end of a call with a gRPC status code after so many seconds."""
        self.handled[code] = self.handled.get(code, 0) + 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class CallCounters:
    """The counters of all methods that are bound."""

    def __init__(self) -> None:
        self.methods: list[MethodCounters] = []

    def method(self, service: str, method: str, kind: str) -> MethodCounters:
        """New counters of one method."""
        counters = MethodCounters(service, method, kind)
        self.methods.append(counters)
        return counters
