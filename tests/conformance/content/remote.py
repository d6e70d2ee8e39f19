"""A content store over gRPC, as a client library has it; implements contracts.content.ContentStore.

The contract's methods block in threads on plain stubs, so that the suite asks a daemon exactly what
it asks a store in its own process. A writer is one Write stream; every answer is awaited.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.services.content.v1 import content_pb2 as pb
from protos.containerd.services.content.v1 import content_pb2_grpc
from supervisord.contracts.content import Info, Status
from supervisord.contracts.errors import InvalidArgument, ResourceExhausted, from_code
from supervisord.contracts.scope import Scope

T = TypeVar("T")
_TIMEOUT = 30


def _nanoseconds(value: Timestamp) -> int:
    return value.seconds * 1_000_000_000 + value.nanos


def _info(found: pb.Info) -> Info:
    return Info(
        found.digest,
        found.size,
        _nanoseconds(found.created_at),
        _nanoseconds(found.updated_at),
        dict(found.labels),
    )


def _status(found: pb.Status) -> Status:
    return Status(
        found.ref,
        found.offset,
        found.total,
        found.expected,
        _nanoseconds(found.started_at),
        _nanoseconds(found.updated_at),
    )


async def _asked(call: Callable[[], T]) -> T:
    """The call in a thread. Raises the domain error that its status stands for."""
    try:
        return await asyncio.to_thread(call)
    except grpc.RpcError as error:
        status: Any = error
        raise from_code(status.code().value[0], status.details() or "") from error


def _metadata(scope: Scope) -> tuple[tuple[str, str], ...]:
    namespace = ("containerd-namespace", scope.namespace)
    return (namespace, ("containerd-lease", scope.lease)) if scope.lease else (namespace,)


class RemoteStore:
    """The store behind a socket; ``close`` ends the connection."""

    def __init__(self, address: str) -> None:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"unix:{address}", options=limits)
        self._stub = content_pb2_grpc.ContentStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    async def _call(self, scope: Scope, method: Callable[..., T], request: object) -> T:
        return await _asked(lambda: method(request, metadata=_metadata(scope), timeout=_TIMEOUT))

    async def _all(self, scope: Scope, method: Callable[..., Any], request: object) -> list[Any]:
        return await _asked(
            lambda: list(method(request, metadata=_metadata(scope), timeout=_TIMEOUT))
        )

    async def info(self, scope: Scope, digest: str) -> Info:
        answer = await self._call(scope, self._stub.Info, pb.InfoRequest(digest=digest))
        return _info(answer.info)

    async def update(self, scope: Scope, info: Info, fieldpaths: Sequence[str]) -> Info:
        request = pb.UpdateRequest(
            info=pb.Info(digest=info.digest, size=info.size, labels=info.labels),
            update_mask=FieldMask(paths=fieldpaths),
        )
        return _info((await self._call(scope, self._stub.Update, request)).info)

    async def walk(self, scope: Scope, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        request = pb.ListContentRequest(filters=filters)
        for batch in await self._all(scope, self._stub.List, request):
            for found in batch.info:
                yield _info(found)

    async def delete(self, scope: Scope, digest: str) -> None:
        await self._call(scope, self._stub.Delete, pb.DeleteContentRequest(digest=digest))

    async def reader(self, scope: Scope, digest: str) -> RemoteReader:
        return RemoteReader(self, scope, await self.info(scope, digest))

    async def part(self, scope: Scope, digest: str, offset: int, size: int) -> bytes:
        """The bytes of one Read."""
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        return b"".join(m.data for m in await self._all(scope, self._stub.Read, request))

    async def read_blob(self, scope: Scope, digest: str, limit: int = 8 << 20) -> bytes:
        size = (await self.info(scope, digest)).size
        if size > limit:
            raise ResourceExhausted(f"content {digest}: has {size} bytes, more than {limit}")
        return await self.part(scope, digest, 0, 0)

    async def writer(
        self, scope: Scope, ref: str, *, total: int = 0, expected: str = "", media_type: str = ""
    ) -> RemoteWriter:
        requests: queue.Queue[pb.WriteContentRequest | None] = queue.Queue()
        stream = self._stub.Write(
            iter(requests.get, None), metadata=_metadata(scope), timeout=_TIMEOUT
        )
        made = RemoteWriter(self, scope, ref, requests, stream)
        try:
            await made.ask(ref=ref, total=total, expected=expected)
        except BaseException:
            await made.close()
            raise
        return made

    async def status(self, scope: Scope, ref: str) -> Status:
        answer = await self._call(scope, self._stub.Status, pb.StatusRequest(ref=ref))
        return _status(answer.status)

    async def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Status]:
        request = pb.ListStatusesRequest(filters=filters)
        answer = await self._call(scope, self._stub.ListStatuses, request)
        return [_status(found) for found in answer.statuses]

    async def abort(self, scope: Scope, ref: str) -> None:
        await self._call(scope, self._stub.Abort, pb.AbortRequest(ref=ref))


class RemoteReader:
    """A blob that is asked for anew at each read."""

    def __init__(self, store: RemoteStore, scope: Scope, info: Info) -> None:
        self._store, self._scope, self._digest = store, scope, info.digest
        self.size = info.size

    def fileno(self) -> int:
        raise OSError("a blob on the wire has no descriptor")

    async def read(self, offset: int, size: int, head: bytes = b"") -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return head
        return head + await self._store.part(self._scope, self._digest, offset, size)

    def close(self) -> None:
        """Nothing is open."""


class RemoteWriter:
    """A Write stream. After each step it asks how far the ingest is."""

    def __init__(
        self,
        store: RemoteStore,
        scope: Scope,
        ref: str,
        requests: queue.Queue[pb.WriteContentRequest | None],
        stream: Any,
    ) -> None:
        self._store, self._scope = store, scope
        self._requests, self._stream = requests, stream
        self._digest = ""
        self._ended = False
        self._status = Status(ref)

    @property
    def status(self) -> Status:
        return self._status

    def digest(self) -> str:
        return self._digest

    async def _send(self, **fields: Any) -> pb.WriteContentResponse:
        self._requests.put(pb.WriteContentRequest(**fields))
        answer: pb.WriteContentResponse = await _asked(lambda: next(self._stream))
        self._digest = answer.digest
        return answer

    async def ask(self, **fields: Any) -> None:
        """A STAT, whose answer is the new status."""
        answer = await self._send(action=pb.STAT, **fields)
        self._status = Status(
            self._status.ref,
            answer.offset,
            answer.total,
            "",
            _nanoseconds(answer.started_at),
            _nanoseconds(answer.updated_at),
        )

    async def write(self, data: bytes) -> None:
        answer = await self._send(action=pb.WRITE, offset=self._status.offset, data=data)
        assert answer.offset == self._status.offset + len(data)
        await self.ask()

    async def settle(self) -> None:
        """Every answer comes when that is so."""

    async def truncate(self, size: int) -> None:
        if size:
            raise InvalidArgument("size: on the wire an ingest can only be started over")
        assert (await self._send(action=pb.WRITE, offset=0)).offset == 0
        await self.ask()

    async def commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        answer = await self._send(
            action=pb.COMMIT,
            offset=self._status.offset,
            total=size,
            expected=expected,
            labels=labels,
        )
        assert answer.action == pb.COMMIT
        assert answer.offset == self._status.offset
        return await self._store.info(self._scope, answer.digest)

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._requests.put(None)
        await asyncio.to_thread(self._drain)

    def _drain(self) -> None:
        """Waits until the daemon has ended the stream, and so has let go of the ref."""
        try:
            for _ in self._stream:
                pass
        except grpc.RpcError:
            assert self._stream.code() is not None
