"""A client of the Transfer service: streams for progress and credentials, and the call itself."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any as Anything

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from protos.containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from protos.containerd.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from protos.containerd.types import types_pb2
from protos.containerd.types.transfer import transfer_pb2 as types
from tests.conformance.wire import Wire

HERE = types_pb2.Platform(os="linux", architecture="amd64")


END = types.Data()
"""As an answer: there is no more."""

Each = Callable[[Any], Sequence[Message] | None]


def packed(message: Message) -> Any:
    """As containerd's typeurl packs it."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Stream:
    """An open stream; what comes is given to ``each``, whose answers are sent."""

    def __init__(self, wire: Wire, id: str, each: Each) -> None:
        self._out: queue.Queue[Any | None] = queue.Queue()
        self._out.put(packed(streaming_pb2.StreamInit(id=id)))
        stub = streaming_pb2_grpc.StreamingStub(wire.channel)
        self._call: Anything = stub.Stream(iter(self._out.get, None), timeout=120)
        next(self._call)  # an Empty: it is known by its name from now on
        self._thread = threading.Thread(target=self._receive, args=(each,))
        self._thread.start()

    def say(self, message: Message) -> None:
        self._out.put(packed(message))

    def _receive(self, each: Each) -> None:
        try:
            for value in self._call:
                for answer in each(value) or ():
                    self._out.put(None if answer is END else packed(answer))
        except grpc.RpcError:
            return

    def close(self) -> None:
        """Lets the daemon end it first, so that what it said last is heard."""
        self._out.put(None)
        self._thread.join(2)
        self._call.cancel()
        self._thread.join()


class Mover:
    """Transfers in the namespace of a wire; ``progress`` has what the last one reported."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._stub = transfer_pb2_grpc.TransferStub(wire.channel)
        self.progress: list[types.Progress] = []

    def transfer(self, source: Message, destination: Message, *, timeout: float = 60) -> None:
        """Raises grpc.RpcError."""
        self.progress = []
        id = f"progress-{uuid.uuid4()}"
        stream = Stream(self._wire, id, self._note)
        try:
            self._stub.Transfer(
                transfer_pb2.TransferRequest(
                    source=packed(source),
                    destination=packed(destination),
                    options=transfer_pb2.TransferOptions(progress_stream=id),
                ),
                timeout=timeout,
            )
        finally:
            stream.close()

    def _note(self, value: Any) -> None:
        self.progress.append(types.Progress.FromString(value.value))

    def pull(
        self,
        reference: str,
        *,
        name: str = "",
        snapshotter: str | None = "overlayfs",
        platforms: Sequence[types_pb2.Platform] = (HERE,),
        resolver: Mapping[str, Anything] | None = None,
        timeout: float = 60,
        **more: Anything,
    ) -> None:
        """Pulls, and unpacks unless ``snapshotter`` is None."""
        unpacks = []
        if snapshotter is not None:
            unpacks = [types.UnpackConfiguration(platform=HERE, snapshotter=snapshotter)]
        self.transfer(
            types.OCIRegistry(
                reference=reference, resolver=types.RegistryResolver(**(resolver or {}))
            ),
            types.ImageStore(name=name or reference, platforms=platforms, unpacks=unpacks, **more),
            timeout=timeout,
        )

    def answering(self, user: str, secret: str) -> tuple[str, Stream, list[types.AuthRequest]]:
        """A stream that answers for credentials: its id, itself, and what it was asked."""
        asked: list[types.AuthRequest] = []

        def answer(value: Any) -> Sequence[Message]:
            asked.append(types.AuthRequest.FromString(value.value))
            found = types.AuthResponse(authType=types.CREDENTIALS, username=user, secret=secret)
            return [found]

        id = f"auth-{uuid.uuid4()}"
        return id, Stream(self._wire, id, answer), asked


def events(progress: Sequence[types.Progress], word: str) -> Iterator[str]:
    """What was reported of nodes whose name begins with a word."""
    for one in progress:
        if one.name.startswith(word):
            yield one.event


def sending(wire: Wire, data: bytes, chunk: int = 32 << 10) -> tuple[str, Stream]:
    """A stream that gives these bytes within the windows that the daemon opens."""
    position, window = 0, 0

    def more(value: Any) -> Sequence[Message] | None:
        nonlocal position, window
        window += types.WindowUpdate.FromString(value.value).update
        answers: list[Message] = []
        while window > 0 and position < len(data):
            part = data[position : position + min(chunk, window)]
            position += len(part)
            window -= len(part)
            answers.append(types.Data(data=part))
        return answers if position < len(data) else [*answers, END]

    id = f"import-{uuid.uuid4()}"
    return id, Stream(wire, id, more)


class Receiving:
    """A stream that takes bytes; ``data`` has them once it was closed."""

    def __init__(self, wire: Wire) -> None:
        self.data = bytearray()
        self.id = f"export-{uuid.uuid4()}"
        self._stream = Stream(wire, self.id, self._take)
        self._stream.say(types.WindowUpdate(update=1 << 30))

    def _take(self, value: Any) -> None:
        self.data += types.Data.FromString(value.value).data

    def close(self) -> bytes:
        self._stream.close()
        return bytes(self.data)
