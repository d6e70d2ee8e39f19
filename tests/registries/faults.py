"""A proxy before a registry that does what networks and bad servers do, as each test tells it.

It forwards HTTP, one request a connection, and may cut a body, stall, send other bytes or other
lengths, answer with another status, and count. It lives in the test's event loop, or in a thread.
"""

from __future__ import annotations

import asyncio
import gzip
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import zstandard
from aiohttp import ClientSession, web

_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@dataclass(slots=True)
class Fault:
    """What to do with a request. After ``cut_after`` bytes of the body the connection is closed,
    after ``stall_after`` nothing more is sent; ``corrupt`` changes the byte there; ``status`` is
    answered instead, with ``text`` (to ``heads``, too, or to a ``method`` alone); ``no_ranges``
    makes a server that knows none; ``encoding`` packs the body for the way; ``times`` is how
    often."""

    path: str
    cut_after: int = -1
    stall_after: int = -1
    corrupt: int = -1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    drop: tuple[str, ...] = ()
    no_ranges: bool = False
    delay: float = 0.0
    heads: bool = False
    method: str = ""
    encoding: str = ""
    text: str = "{}"
    times: int = 1 << 30


@dataclass(slots=True)
class Seen:
    """A request that came: method, path, and the headers by name in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Proxy:
    """``address`` is where it listens."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.closing = asyncio.Event()
        self.drop_from_head = ""
        self.media_type = ""
        self.cut_upload = -1
        self.wait: Callable[[Seen], asyncio.Future[None] | None] = lambda seen: None

    def asked(self, word: str, method: str = "GET") -> list[Seen]:
        """The requests whose path has this word."""
        return [seen for seen in self.seen if word in seen.path and seen.method == method]

    def _fault(self, path: str, method: str) -> Fault:
        for fault in self.faults:
            hit = method == fault.method if fault.method else method == "GET" or fault.heads
            if fault.path in path and fault.times > 0 and hit:
                fault.times -= 1
                return fault
        return Fault("")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(
            request.method,
            request.path_qs,
            {name.lower(): value for name, value in request.headers.items()},
        )
        self.seen.append(seen)
        fault = self._fault(request.path_qs, request.method)
        waiting = self.wait(seen)
        if waiting is not None:
            await waiting
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.redirect:
            return web.Response(status=307, headers={"Location": fault.redirect + request.path_qs})
        if fault.status:
            return web.Response(status=fault.status, headers=fault.headers, text=fault.text)
        headers = {name: request.headers[name] for name in request.headers if name != "Host"}
        if fault.no_ranges or fault.encoding:
            headers.pop("Range", None)
        url = f"http://{self.target}{request.path_qs}"
        body = self._upload(request) if request.body_exists else None
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer,
        ):
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name not in ("Transfer-Encoding", *fault.drop)
                and not (request.method == "HEAD" and name == self.drop_from_head)
            }
            if self.media_type:
                kept["Content-Type"] = self.media_type
            if fault.encoding:
                packed = _PACKERS[fault.encoding](await answer.read())
                kept.pop("Content-Length", None)
                kept["Content-Encoding"] = fault.encoding
                return web.Response(status=answer.status, headers=kept, body=packed)
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.force_close()
            await response.prepare(request)
            await self._body(request, response, answer.content.iter_chunked(16 << 10), fault)
            return response

    async def _upload(self, request: web.Request) -> AsyncIterator[bytes]:
        """What the client sends; cut once, after ``cut_upload`` bytes of a body that is longer."""
        limit = self.cut_upload
        cuts = 0 <= limit < (request.content_length or 0)
        sent = 0
        async for chunk in request.content.iter_chunked(16 << 10):
            if cuts and sent + len(chunk) > limit:
                self.cut_upload = -1
                assert request.transport is not None
                request.transport.close()
                raise ConnectionError("cut")
            yield chunk
            sent += len(chunk)

    async def _body(
        self,
        request: web.Request,
        response: web.StreamResponse,
        chunks: AsyncIterator[bytes],
        fault: Fault,
    ) -> None:
        sent = 0
        async for chunk in chunks:
            for limit in (fault.cut_after, fault.stall_after):
                if 0 <= limit < sent + len(chunk):
                    await response.write(chunk[: limit - sent])
                    if limit == fault.stall_after:
                        await self.closing.wait()
                    if request.transport is not None:  # else the client was the first to go
                        request.transport.close()
                    return
            if sent <= fault.corrupt < sent + len(chunk):
                place = fault.corrupt - sent
                chunk = chunk[:place] + bytes([chunk[place] ^ 0xFF]) + chunk[place + 1 :]
            await response.write(chunk)
            sent += len(chunk)


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy before ``HOST:PORT``, until the block ends."""
    found = Proxy(target)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        found.address = f"{host}:{port}"
        yield found
    finally:
        found.closing.set()
        await runner.cleanup()


@contextmanager
def threaded(target: str) -> Iterator[Proxy]:
    """The same for tests without an event loop: the proxy lives in a thread."""
    ready: Future[tuple[Proxy, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with proxy(target) as found:
            ended = asyncio.Event()
            ready.set_result((found, asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    found, loop, ended = ready.result(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
