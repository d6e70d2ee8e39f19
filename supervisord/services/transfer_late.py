"""The services of transfers and registries before their first calls, which load all they need."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from supervisord.contracts.streams import StreamGetter
from supervisord.images.late import LateTransfers

from .call import Call

if TYPE_CHECKING:
    from google.protobuf.empty_pb2 import Empty

    from protos.containerd.services.transfer.v1 import transfer_pb2
    from protos.supervisord.registries.v1 import registries_pb2 as pb


class _Late:
    """The service ``name`` of ``module``, made at the first call."""

    def __init__(self, transfers: LateTransfers, streams: StreamGetter, module: str, name: str):
        self._transfers = transfers
        self._streams = streams
        self._module = f"{__package__}.{module}"
        self._name = name
        self._made: Any = None

    async def get(self) -> Any:
        if self._made is None:
            transfers = await self._transfers.get()
            module = await asyncio.to_thread(importlib.import_module, self._module)
            self._made = getattr(module, self._name)(transfers, self._streams)
        return self._made


class LateTransferService:
    """Hands each call on to ``services.transfer.TransferService``."""

    def __init__(self, transfers: LateTransfers, streams: StreamGetter) -> None:
        self._late = _Late(transfers, streams, "transfer", "TransferService")

    async def transfer(self, call: Call, request: transfer_pb2.TransferRequest) -> Empty:
        service = await self._late.get()
        return await service.transfer(call, request)  # type: ignore[no-any-return]


class LateRegistriesService:
    """Hands each call on to ``services.registries.RegistriesService``."""

    def __init__(self, transfers: LateTransfers, streams: StreamGetter) -> None:
        self._late = _Late(transfers, streams, "registries", "RegistriesService")

    async def tags(self, call: Call, request: pb.TagsRequest) -> AsyncIterator[pb.TagsResponse]:
        service = await self._late.get()
        async with aclosing(service.tags(call, request)) as pages:
            async for page in pages:
                yield page

    async def referrers(self, call: Call, request: pb.ReferrersRequest) -> pb.ReferrersResponse:
        service = await self._late.get()
        return await service.referrers(call, request)  # type: ignore[no-any-return]
