"""From a service's descriptor and an object with its methods to what the gRPC server calls.

``bind`` is called at boot, once per service. An RPC ``ListStream`` is served by the method
``list_stream(call, request)``; an RPC without a method is UNIMPLEMENTED. A method returns a
message, its serialized bytes, or None for Empty. A plain function is called on the spot, without
a task: it must not wait for anything. A streaming method is an async generator; one that reads a
stream gets an async iterator of requests.

Everything that is the same for all calls happens here, once: counting, the translation of domain
errors into statuses, and what to do with a defect.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from supervisord.contracts.errors import Error

from .call import Call
from .counters import CallCounters

log = logging.getLogger(__name__)

Response = Message | bytes | None
Answer = tuple[int, str, bytes]
"""A status code, its message, and (with code 0) the serialized reply."""

CANCELLED = 1
DEADLINE_EXCEEDED = 4
INTERNAL = 13
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_KINDS = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


def method_name(rpc: str) -> str:
    """The Python name of an RPC: ``CloseIO`` is ``close_io``."""
    return _WORD.sub("_", rpc).lower()


def bind(
    descriptor: ServiceDescriptor,
    implementation: object,
    counters: CallCounters,
    name: str = "",
) -> dict[str, Method]:
    """The methods of one service by path. ``name`` serves it under another full name (an alias of
    the same messages). Raises ValueError if the implementation has a method for none of the
    service's RPCs."""
    service = name or descriptor.full_name
    methods: dict[str, Method] = {}
    for method in descriptor.methods:
        function = getattr(implementation, method_name(method.name), None)
        if function is not None:
            methods[f"/{service}/{method.name}"] = Method(method, function, counters, service)
    if not methods:
        raise ValueError(f"{type(implementation).__name__} serves no method of {service}")
    return methods


class Method:
    """One RPC. ``streams_in`` and ``streams_out`` say how it is called: ``answer`` or ``stream``;
    ``immediate`` that ``answer_now`` will do."""

    def __init__(
        self,
        descriptor: MethodDescriptor,
        function: Callable[[Call, Any], Any],
        counters: CallCounters,
        service: str,
    ) -> None:
        self.path = f"/{service}/{descriptor.name}"
        self.streams_in: bool = descriptor.client_streaming
        self.streams_out: bool = descriptor.server_streaming
        kind = _KINDS[self.streams_in, self.streams_out]
        self.counters = counters.method(service, descriptor.name, kind)
        self.parse: Callable[[bytes], Message] = GetMessageClass(descriptor.input_type).FromString
        streaming = self.streams_in or self.streams_out
        self.immediate = not streaming and not inspect.iscoroutinefunction(function)
        self._function = function

    def answer_now(self, call: Call, request: Message) -> Answer:
        """The answer of an immediate method."""
        begin = self._begin(1)
        code, message, reply = 0, "", b""
        try:
            reply = serialized(self._function(call, request))
            self.counters.sent += 1
        except Exception as error:
            code, message = translated(error, self.path)
        self.counters.finished(code, perf_counter() - begin)
        return code, message, reply

    async def answer(self, call: Call, request: Message | AsyncIterator[Message]) -> Answer:
        """The answer of a method with one reply."""
        begin = self._begin(0 if self.streams_in else 1)
        code, message, reply = CANCELLED, "", b""
        try:
            reply = serialized(await self._function(call, request))
            self.counters.sent += 1
            code = 0
        except Exception as error:
            code, message = translated(error, self.path)
        finally:
            self.counters.finished(code, perf_counter() - begin)
        return code, message, reply

    async def stream(
        self,
        call: Call,
        request: Message | AsyncIterator[Message],
        send: Callable[[bytes], Awaitable[None]],
    ) -> Answer:
        """Sends the replies of a streaming method; the answer is its end."""
        begin = self._begin(0 if self.streams_in else 1)
        code, message = CANCELLED, ""
        try:
            async with aclosing(self._function(call, request)) as replies:
                async for reply in replies:
                    await send(serialized(reply))
                    self.counters.sent += 1
            code = 0
        except Exception as error:
            code, message = translated(error, self.path)
        finally:
            self.counters.finished(code, perf_counter() - begin)
        return code, message, b""

    def _begin(self, received: int) -> float:
        self.counters.started += 1
        self.counters.received += received
        return perf_counter()


def serialized(response: Response) -> bytes:
    """The bytes of a reply."""
    if type(response) is bytes:
        return response
    if response is None:
        return b""
    return response.SerializeToString()  # type: ignore[union-attr]


def translated(error: Exception, path: str) -> tuple[int, str]:
    """The status code and message that a client gets. What is no domain error is a defect: it is
    logged with its traceback, and the client is told its kind."""
    if isinstance(error, Error):
        if log.isEnabledFor(logging.DEBUG):
            log.debug("call refused", extra={"method": path, "code": error.code, "error": error})
        return error.code, error.message
    if isinstance(error, TimeoutError):
        return DEADLINE_EXCEEDED, str(error) or "the deadline passed"
    log.error("call failed", exc_info=error, extra={"method": path})
    return INTERNAL, f"internal error: {type(error).__name__}: {error}"
