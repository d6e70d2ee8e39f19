"""From a service's descriptor and an object with its methods to gRPC handlers.

``bind`` is called at boot, once per service. An RPC ``ListStream`` is served by the method
``list_stream(call, request)``; an RPC without a method is left to gRPC, which answers
UNIMPLEMENTED. A method returns a message, its serialized bytes, or None for Empty; a streaming one
is an async generator of those; one that reads a stream gets an async iterator of requests. One
that streams out and is a coroutine sends all messages but the last by ``call.send``, and returns
the last, which then leaves in one go with the status: half the work of a stream of one message.

Everything that is the same for all calls happens in the one wrapper around each method: counting,
the translation of domain errors into statuses, and what to do with a defect. gRPC's own
interceptors are not used because they cost a third of a short call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from supervisord.contracts.errors import Error, InvalidArgument

from .call import Call
from .counters import CallCounters, MethodCounters

log = logging.getLogger(__name__)

Response = Message | bytes | None

STATUS = {status.value[0]: status for status in grpc.StatusCode}
_CANCELLED = 1
_INTERNAL = 13
_TOLD = 2500
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
) -> Any:
    """The generic handler of one service, for ``grpc.aio.Server.add_generic_rpc_handlers``.

    ``name`` serves it under another full name (an alias of the same messages). Raises ValueError
    if the implementation has a method for none of the service's RPCs."""
    service = name or descriptor.full_name
    handlers: dict[str, Any] = {}
    for method in descriptor.methods:
        function = getattr(implementation, method_name(method.name), None)
        if function is not None:
            handlers[method.name] = _handler(method, function, counters, service)
    if not handlers:
        raise ValueError(f"{type(implementation).__name__} serves no method of {service}")
    return grpc.method_handlers_generic_handler(service, handlers)


class _Malformed:
    """A request that could not be read. gRPC itself would log that as a defect of ours."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _parser(kind: type[Message]) -> Callable[[bytes], Message | _Malformed]:
    parse = kind.FromString

    def parsed(data: bytes) -> Message | _Malformed:
        try:
            return parse(data)
        except DecodeError:
            return _Malformed(f"the request is no {kind.DESCRIPTOR.full_name}")

    return parsed


def _readable(request: Any) -> Any:
    """The request. Raises InvalidArgument if it could not be read."""
    if type(request) is _Malformed:
        raise InvalidArgument(request.reason)
    return request


def _serialize(response: Response) -> bytes:
    if type(response) is bytes:
        return response
    if response is None:
        return b""
    return response.SerializeToString()  # type: ignore[union-attr]


def _handler(
    method: MethodDescriptor, function: Callable[..., Any], counters: CallCounters, service: str
) -> Any:
    streams_in, streams_out = method.client_streaming, method.server_streaming
    stats = counters.method(service, method.name, _KINDS[streams_in, streams_out])
    path = f"/{service}/{method.name}"
    parse = _parser(GetMessageClass(method.input_type))
    if not streams_in and not streams_out:
        unary = _unary(stats, path, function)
        return grpc.unary_unary_rpc_method_handler(unary, parse, _serialize)
    if streams_in and not streams_out:
        collecting = _unary(stats, path, _counting(stats, function))
        return grpc.stream_unary_rpc_method_handler(collecting, parse, _serialize)
    if streams_out and not streams_in:
        if inspect.iscoroutinefunction(function):
            # For a client there is no difference between one response and a stream of one.
            last = _unary(stats, path, _sending(stats, function))
            return grpc.unary_unary_rpc_method_handler(last, parse, _serialize)
        streaming = _streaming(stats, path, function)
        return grpc.unary_stream_rpc_method_handler(streaming, parse, _serialize)
    streaming = _streaming(stats, path, _counting(stats, function))
    return grpc.stream_stream_rpc_method_handler(streaming, parse, _serialize)


def _counting(stats: MethodCounters, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its incoming messages counted."""

    async def requests(source: AsyncIterator[Any]) -> AsyncIterator[Any]:
        stats.received -= 1  # the wrapper counted one for the call
        async for request in source:
            stats.received += 1
            yield _readable(request)

    def counted(call: Call, source: AsyncIterator[Any]) -> Any:
        return function(call, requests(source))

    return counted


def _sending(stats: MethodCounters, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the messages counted that it sends before its last one."""

    async def counted(call: Call, request: Any) -> Any:
        try:
            return await function(call, request)
        finally:
            stats.sent += call.sent

    return counted


def _unary(
    stats: MethodCounters, path: str, function: Callable[[Call, Any], Awaitable[Response]]
) -> Callable[[Any, Any], Awaitable[Response]]:
    async def handle(request: Any, context: Any) -> Response:
        stats.started += 1
        stats.received += 1
        begin = perf_counter()
        code = 0
        try:
            response = await function(Call(context), _readable(request))
            stats.sent += 1
            return response
        except Exception as error:
            code, message = translated(error, path)
        except asyncio.CancelledError:
            code = _CANCELLED
            raise
        finally:
            stats.finished(code, perf_counter() - begin)
        return await context.abort(STATUS[code], message)  # type: ignore[no-any-return]

    return handle


def _streaming(
    stats: MethodCounters, path: str, function: Callable[[Call, Any], Any]
) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(request: Any, context: Any) -> None:
        stats.started += 1
        stats.received += 1
        begin = perf_counter()
        code = 0
        try:
            async with aclosing(function(Call(context), _readable(request))) as responses:
                async for response in responses:
                    await context.write(response)
                    stats.sent += 1
            return
        except Exception as error:
            code, message = translated(error, path)
        except asyncio.CancelledError:
            code = _CANCELLED
            raise
        finally:
            stats.finished(code, perf_counter() - begin)
        await context.abort(STATUS[code], message)

    return handle


def translated(error: Exception, path: str) -> tuple[int, str]:
    """The status code and message that a client gets. What is no domain error is a defect: it is
    logged with its traceback, and the client is told its kind."""
    if isinstance(error, Error):
        if log.isEnabledFor(logging.DEBUG):
            log.debug("call refused", extra={"method": path, "code": error.code, "error": error})
        return error.code, _told(error.message)
    if isinstance(error, TimeoutError):
        return 4, str(error) or "the deadline passed"
    log.error("call failed", exc_info=error, extra={"method": path})
    return _INTERNAL, _told(f"internal error: {type(error).__name__}: {error}")


def _told(message: str) -> str:
    """The message, cut where no client would take it: a status travels in HTTP/2 headers, of which
    gRPC may refuse more than 8 KiB, and each byte that is not plain ASCII is three there."""
    if len(message) <= _TOLD // 4:
        return message
    text = message.encode(errors="replace")
    if len(text) <= _TOLD:
        return message
    return text[:_TOLD].decode(errors="ignore") + "..."
