"""supervisord.registries.v1: what a registry tells of a repository. A service of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from protos.containerd.types.transfer import transfer_pb2 as types
from protos.supervisord.registries.v1 import registries_pb2 as pb
from supervisord.contracts.streams import StreamGetter
from supervisord.images.registry import listing
from supervisord.images.registry.repository import Repository
from supervisord.images.transfers import Transfers

from .call import Call
from .transfer import registry_of

_PAGE = 1000


class RegistriesService:
    """Asks a registry as a transfer would: with the same folders of hosts and credentials."""

    def __init__(self, transfers: Transfers, streams: StreamGetter) -> None:
        self._transfers = transfers
        self._streams = streams

    async def tags(self, call: Call, request: pb.TagsRequest) -> AsyncIterator[pb.TagsResponse]:
        async with self._connected(call, request.registry) as repository:
            page: list[str] = []
            async for tag in listing.tags(repository):
                page.append(tag)
                if len(page) == _PAGE:
                    yield pb.TagsResponse(tags=page)
                    page = []
            yield pb.TagsResponse(tags=page)

    async def referrers(self, call: Call, request: pb.ReferrersRequest) -> pb.ReferrersResponse:
        async with self._connected(call, request.registry) as repository:
            subject = repository.reference.digest or (await repository.resolve()).digest
            found = await listing.referrers(repository, subject, request.artifact_type)
        return pb.ReferrersResponse(
            subject=subject,
            referrers=[
                pb.Referrer(
                    media_type=one.media_type,
                    digest=one.digest,
                    size=one.size,
                    artifact_type=one.artifact_type,
                    annotations=one.annotations or {},
                )
                for one in found
            ],
        )

    def _connected(
        self, call: Call, message: types.OCIRegistry
    ) -> AbstractAsyncContextManager[Repository]:
        """Raises InvalidArgument, NotFound (a stream)."""
        end = registry_of(self._streams, call.scope.namespace, message, "registry")
        return self._transfers.connected(end)
