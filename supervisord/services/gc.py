"""supervisord.gc.v1: collections on request, what they would take, and what keeps a thing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from google.protobuf.duration_pb2 import Duration

from protos.supervisord.gc.v1 import gc_pb2 as pb
from supervisord.contracts.garbage import Explanation, Inspector
from supervisord.contracts.leases import Collector

from .call import Call
from .wire import timestamp

_SECOND = 1_000_000_000


class GCService:
    """Hands each request to the collector, or to the inspector of what it collects."""

    def __init__(self, collector: Collector, inspector: Inspector) -> None:
        self._collector = collector
        self._inspector = inspector

    async def collect(self, call: Call, request: pb.CollectRequest) -> pb.CollectResponse:
        collected = await self._collector.collect()
        took = Duration()
        took.FromNanoseconds(int(collected.seconds * _SECOND))
        return pb.CollectResponse(records=collected.swept.records, took=took)

    async def preview(
        self, call: Call, request: pb.PreviewRequest
    ) -> AsyncIterator[pb.PreviewResponse]:
        async for part in self._inspector.preview(request.namespace):
            yield pb.PreviewResponse(
                doomed=[
                    pb.Doomed(namespace=d.namespace, type=d.type, id=d.id, size=d.size)
                    for d in part
                ]
            )

    async def explain(self, call: Call, request: pb.ExplainRequest) -> pb.ExplainResponse:
        explained = await self._inspector.explain(call.namespace, request.id, request.type)
        due = self._collector.due()
        return pb.ExplainResponse(
            explanations=[_to_wire(explanation) for explanation in explained],
            next_collection=None if due is None else timestamp(time.time_ns() + int(due * _SECOND)),
        )


def _to_wire(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        type=explanation.type,
        id=explanation.id,
        chains=[
            pb.Chain(
                links=[pb.Link(type=n.type, id=n.id, reason=n.reason) for n in chain.links],
                until=timestamp(chain.until or 0),
            )
            for chain in explanation.chains
        ],
        more=explanation.more,
        until=timestamp(explanation.until or 0),
        shared_with=explanation.shared_with,
    )
