"""One conversation of Content.Write: requests in, a reply to each, until a COMMIT.

The first request names the ref and opens the ingest, which stays locked for the session. Each
request is a STAT (how far is it), a WRITE (data at an offset) or a COMMIT (data, then verify and
keep). An offset above zero must be where the ingest ends; offset zero on an ingest that has bytes
starts it over, so a client that goes on from where it was says so. A reply tells the offset after
the request. The rules are those of containerd's content service.
"""

from __future__ import annotations

import contextlib

from protos.containerd.services.content.v1 import content_pb2 as pb
from supervisord.contracts.content import ContentStore, Writer
from supervisord.contracts.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange
from supervisord.contracts.identifiers import check_digest
from supervisord.contracts.scope import Scope

from .wire import timestamp

_ACTIONS = frozenset(pb.WriteAction.values())


class WriteSession:
    """The state of one conversation. ``close`` must run however it ends."""

    def __init__(self, store: ContentStore, scope: Scope) -> None:
        self._store = store
        self._scope = scope
        self._writer: Writer | None = None
        self._ref = ""
        self._total = 0
        self._expected = ""
        self.committed = False
        self.moved = 0
        """Bytes that came."""

    async def handle(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        """Carries out one request.

        Raises InvalidArgument (no ref, malformed digest), AlreadyExists (the expected blob is
        here; the ingest is dropped), OutOfRange (offset), and whatever the store raises."""
        _check(request)
        writer = self._writer or await self._open(request)
        if request.expected:
            await self._refuse_existing(request.expected)
            self._expected = request.expected
        if request.total > 0:
            self._total = request.total
        if request.action == pb.WriteAction.STAT:
            return self._stat(writer)
        offset = await self._write(writer, request)
        if request.action == pb.WriteAction.COMMIT:
            made = await writer.commit(self._total, self._expected, dict(request.labels))
            self.committed = True
            digest = made.digest  # under the algorithm of what is expected
        else:
            digest = writer.digest()
        return pb.WriteContentResponse(action=request.action, offset=offset, digest=digest)

    def check_begun(self) -> None:
        """Raises InvalidArgument if there was no request at all."""
        if self._writer is None and not self.committed:
            raise InvalidArgument("ref: the stream ended before a message had a reference")

    async def close(self) -> None:
        """Unlocks the ref; what was not committed stays to be resumed."""
        if self._writer is not None:
            await self._writer.close()
            self._writer = None

    async def _open(self, request: pb.WriteContentRequest) -> Writer:
        if not request.ref:
            raise InvalidArgument("ref: the first message must have a reference")
        self._ref = request.ref
        self._total = max(request.total, 0)
        self._writer = await self._store.writer(
            self._scope, request.ref, total=self._total, expected=request.expected
        )
        return self._writer

    async def _refuse_existing(self, expected: str) -> None:
        try:
            await self._store.info(self._scope, expected)
        except NotFound:
            return
        await self.close()
        with contextlib.suppress(NotFound):
            await self._store.abort(self._scope, self._ref)
        raise AlreadyExists(f"blob with expected digest {expected} exists: already exists")

    def _stat(self, writer: Writer) -> pb.WriteContentResponse:
        status = writer.status
        return pb.WriteContentResponse(
            action=pb.WriteAction.STAT,
            started_at=timestamp(status.started_at),
            updated_at=timestamp(status.updated_at),
            offset=status.offset,
            total=self._total,
            digest=writer.digest(),
        )

    async def _write(self, writer: Writer, request: pb.WriteContentRequest) -> int:
        offset = writer.status.offset
        if request.offset > 0 and request.offset != offset:
            raise OutOfRange(f"write @{request.offset} must occur at current offset {offset}")
        if request.offset == 0 and offset > 0:
            await writer.truncate(0)
            offset = 0
        if request.data:
            await writer.write(request.data)
            if request.action == pb.WriteAction.WRITE:
                await writer.settle()  # an offset that was told is kept, whoever dies
            offset += len(request.data)
            self.moved += len(request.data)
        return offset


def _check(request: pb.WriteContentRequest) -> None:
    if request.action not in _ACTIONS:
        raise InvalidArgument(f"action: {request.action} is none of STAT, WRITE, COMMIT")
    if request.offset < 0:
        raise InvalidArgument("offset: must not be negative")
    if request.total < 0:
        raise InvalidArgument("total: must not be negative")
    if request.expected:
        check_digest(request.expected, "expected")
