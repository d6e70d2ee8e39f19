"""containerd.services.content.v1: blobs and ingests.

What a Write and a Read are, message by message, is in ``content_write`` and ``content_read``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.containerd.services.content.v1 import content_pb2 as pb
from supervisord.contracts.content import ContentStore, Info, Status
from supervisord.contracts.identifiers import check_digest

from .call import Call
from .content_read import CHUNK, ReadSession
from .content_write import WriteSession
from .traffic import Traffic
from .wire import nanoseconds, paths, required, timestamp

_BATCH = 100


def _info(info: Info) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status(status: Status) -> pb.Status:
    return pb.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


class ContentService:
    """Checks digests, cuts lists and blobs into messages, and hands the rest to the store."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._traffic = Traffic()

    async def info(self, call: Call, request: pb.InfoRequest) -> pb.InfoResponse:
        digest = check_digest(request.digest)
        return pb.InfoResponse(info=_info(await self._store.info(call.scope, digest)))

    async def update(self, call: Call, request: pb.UpdateRequest) -> pb.UpdateResponse:
        required(request.HasField("info"), "info")
        wanted = Info(
            digest=check_digest(request.info.digest, "info.digest"),
            size=request.info.size,
            created_at=nanoseconds(request.info.created_at),
            updated_at=nanoseconds(request.info.updated_at),
            labels=dict(request.info.labels),
        )
        updated = await self._store.update(call.scope, wanted, paths(request.update_mask))
        return pb.UpdateResponse(info=_info(updated))

    async def list(
        self, call: Call, request: pb.ListContentRequest
    ) -> AsyncIterator[pb.ListContentResponse]:
        batch: list[pb.Info] = []
        async for info in self._store.walk(call.scope, tuple(request.filters)):
            batch.append(_info(info))
            if len(batch) == _BATCH:
                yield pb.ListContentResponse(info=batch)
                batch = []
        if batch:
            yield pb.ListContentResponse(info=batch)

    async def delete(self, call: Call, request: pb.DeleteContentRequest) -> None:
        await self._store.delete(call.scope, check_digest(request.digest))

    async def read(self, call: Call, request: pb.ReadContentRequest) -> bytes:
        """Chunks of at most 1 MiB; their offsets count from the first byte that is sent, as
        containerd's do. An empty range is one message without data."""
        reader = await self._store.reader(call.scope, check_digest(request.digest))
        session = ReadSession(reader, request)
        try:
            if session.left <= CHUNK:
                return await session.chunk()
            self._traffic.began()
            try:
                while session.left > CHUNK:
                    await call.send(await session.chunk())
                return await session.chunk()
            finally:
                await self._traffic.ended(session.done)
        finally:
            reader.close()

    async def status(self, call: Call, request: pb.StatusRequest) -> pb.StatusResponse:
        return pb.StatusResponse(status=_status(await self._store.status(call.scope, request.ref)))

    async def list_statuses(
        self, call: Call, request: pb.ListStatusesRequest
    ) -> pb.ListStatusesResponse:
        found = await self._store.statuses(call.scope, tuple(request.filters))
        return pb.ListStatusesResponse(statuses=[_status(status) for status in found])

    async def write(
        self, call: Call, requests: AsyncIterator[pb.WriteContentRequest]
    ) -> AsyncIterator[pb.WriteContentResponse]:
        session = WriteSession(self._store, call.scope)
        self._traffic.began()
        try:
            async for request in requests:
                yield await session.handle(request)
                if session.committed:
                    return
            session.check_begun()
        finally:
            await session.close()
            await self._traffic.ended(session.moved)

    async def abort(self, call: Call, request: pb.AbortRequest) -> None:
        await self._store.abort(call.scope, request.ref)
