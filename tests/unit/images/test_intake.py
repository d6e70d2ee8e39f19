"""Large bodies, received by taking a connection over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from supervisord.contracts.errors import Unavailable
from supervisord.images.hosts.endpoint import Endpoint, Tls
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.reference import parse
from supervisord.images.registry import repository as module
from supervisord.images.registry.intake import SIZE, received
from supervisord.images.registry.keeper import NOBODY
from supervisord.images.registry.repository import Repository
from supervisord.images.registry.session import Patience, session
from tests.conformance.ocitar import Image
from tests.registries.certificates import Authority
from tests.registries.server import fill, needed, server

_DATA = random.Random(3).randbytes(5_000_000)  # noqa: S311 - the same each time


@asynccontextmanager
async def _answering(sent: int, *, ends: bool = True) -> AsyncIterator[str]:
    """A server that announces all of the data, and sends ``sent`` bytes of it."""
    done = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_DATA))
        writer.write(_DATA[:sent])
        try:
            await writer.drain()
            if not ends:
                await done.wait()
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        port = listening.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}"
    finally:
        done.set()
        listening.close()


async def _taken(address: str, stall: float = 5.0, pause: float = 0.0) -> list[bytes]:
    """All pieces, also those that came before it broke, and what broke it as the last one."""
    pieces: list[bytes] = []
    async with (
        session(Endpoint(address, "http"), NOBODY, Patience(stall=stall, attempts=1)) as asked,
        asked.request("GET", asked.url("a")) as response,
        aclosing(received(response, len(_DATA), stall)) as coming,
    ):
        try:
            async for piece in coming:
                await asyncio.sleep(pause)
                pieces.append(bytes(piece))
        except Unavailable as error:
            pieces.append(b"!" + str(error).encode())
    return pieces


async def test_all_of_it_in_large_pieces() -> None:
    async with _answering(len(_DATA)) as address:
        pieces = await _taken(address)
    assert b"".join(pieces) == _DATA
    assert max(map(len, pieces)) <= SIZE


async def test_who_is_slow_holds_the_sender_up() -> None:
    async with _answering(len(_DATA)) as address:
        pieces = await _taken(address, pause=0.01)
    assert b"".join(pieces) == _DATA


async def test_a_cut_comes_after_what_was_before_it() -> None:
    async with _answering(3_000_001) as address:
        *pieces, last = await _taken(address)
    assert b"".join(pieces) == _DATA[:3_000_001]
    assert last.startswith(b"!the server ended it early")


async def test_a_stall_ends_it() -> None:
    async with _answering(2_000_000, ends=False) as address:
        *pieces, last = await _taken(address, stall=0.2)
    assert b"".join(pieces) == _DATA[:2_000_000]
    assert last == b"!nothing came for 0.2 s"


async def test_who_stops_early_leaves_nothing_behind() -> None:
    async with (
        _answering(len(_DATA)) as address,
        session(Endpoint(address, "http"), NOBODY, Patience(attempts=1)) as asked,
        asked.request("GET", asked.url("a")) as response,
        aclosing(received(response, len(_DATA), 5.0)) as coming,
    ):
        first = await anext(coming)
        assert _DATA.startswith(bytes(first))


@needed
async def test_over_tls(
    tmp_path: Path, archive: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that comes in many records, taken over behind a handshake."""
    monkeypatch.setattr(module, "_LARGE", 1000)
    authority = Authority(tmp_path / "ca")
    with server(tmp_path, authority=authority) as registry:
        fill(registry, archive, "some/image:1")
        endpoint = Endpoint(registry.address, tls=Tls(ca=(str(authority.certificate),)))
        async with session(endpoint, NOBODY) as asked:
            repository = Repository(parse(f"{registry.address}/some/image:1"), [asked])
            digest = image.layers[1]
            layer = Descriptor(media.LAYER, digest, len(image.blobs[digest]))
            async with repository.open(layer) as body:
                data = b"".join([chunk async for chunk in body.chunks()])
    assert data == image.blobs[digest]
