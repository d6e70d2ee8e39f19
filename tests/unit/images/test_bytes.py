"""The bytes of blobs over connections that break, in ranges and without."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from supervisord.contracts.errors import FailedPrecondition, NotFound, Unavailable
from supervisord.images.oci import media
from supervisord.images.oci.documents import Descriptor
from supervisord.images.pull import bytes as module
from supervisord.images.pull.bytes import blob_bytes
from supervisord.images.pull.limits import Limits
from supervisord.images.reference import parse
from supervisord.images.registry.repository import Repository

_DATA = random.Random(2).randbytes(100_000)  # noqa: S311 - the same each time
_BLOB = Descriptor(media.LAYER, "sha256:" + "0" * 64, len(_DATA))


@dataclass(slots=True)
class _Response:
    status: int


@dataclass(slots=True)
class _Body:
    """In place of registry.Body: what a test says, cut where it says."""

    response: _Response
    offset: int
    data: bytes
    cut: int

    async def chunks(self) -> AsyncIterator[bytes]:
        sent = 0
        for start in range(0, len(self.data), 700):
            chunk = self.data[start : start + 700]
            if 0 <= self.cut < sent + len(chunk):
                yield chunk[: self.cut - sent]
                raise Unavailable("cut")
            sent += len(chunk)
            await asyncio.sleep(0)  # the others' turn
            yield chunk


@dataclass(slots=True)
class _Server:
    """A repository that breaks: ``cuts`` are byte counts, one for each request."""

    cuts: list[int] = field(default_factory=list)
    knows_ranges: bool = True
    data: bytes = _DATA
    asked: list[tuple[int, int | None]] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    reference = parse("h.io/a:1")

    @asynccontextmanager
    async def open(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[_Body]:
        self.asked.append((offset, length))
        cut = self.cuts.pop(0) if self.cuts else -1
        if cut == -2:
            raise NotFound("it went away")
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            if self.knows_ranges and (offset or length is not None):
                end = len(self.data) if length is None else offset + length
                yield _Body(_Response(206), offset, self.data[offset:end], cut)
            else:
                yield _Body(_Response(200), 0, self.data, cut)
        finally:
            self.open_now -= 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, and no waiting."""
    monkeypatch.setattr(module, "PART", 10_000)
    monkeypatch.setattr(module, "_PIECE", 3_000)
    monkeypatch.setattr(module, "delay", lambda cuts: 0.0)


async def _all(server: _Server, offset: int = 0, ranges: int = 1) -> bytes:
    pieces = blob_bytes(cast(Repository, server), _BLOB, offset, ranges=ranges)
    async with aclosing(pieces):
        found = b"".join([piece async for piece in pieces])
    assert server.open_now == 0
    return found


@pytest.mark.parametrize("ranges", [1, 3])
@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("offset", [0, 5, 19_999])
@pytest.mark.parametrize("cuts", [[], [0], [1, 1, 1], [699, 700, 701, 9_999], [5_000] * 30])
async def test_all_bytes_come_in_order(
    ranges: int, knows_ranges: bool, offset: int, cuts: list[int]
) -> None:
    if not knows_ranges and cuts == [5_000] * 30:
        cuts = [20_000, 50_000]  # without ranges each cut has to come further than the last
    server = _Server(list(cuts), knows_ranges)
    assert await _all(server, offset, ranges) == _DATA[offset:]


async def test_ranges_are_asked_ahead_and_no_more_than_allowed() -> None:
    server = _Server()
    await _all(server, 0, 4)
    assert server.asked == [(start, 10_000) for start in range(0, 90_000, 10_000)] + [
        (90_000, None)
    ]
    assert server.most_open == 4
    server = _Server(knows_ranges=False)
    await _all(server, 0, 4)
    assert server.asked == [(0, 10_000)]


async def test_a_host_has_its_limit() -> None:
    server = _Server()
    limits = Limits(per_host=2)
    pieces = blob_bytes(cast(Repository, server), _BLOB, limits=limits, ranges=4)
    async with aclosing(pieces):
        assert b"".join([piece async for piece in pieces]) == _DATA
    assert server.most_open == 2


@pytest.mark.parametrize("ranges", [1, 3])
async def test_cuts_that_bring_nothing_end(ranges: int) -> None:
    server = _Server([0] * 100)
    with pytest.raises(Unavailable, match="cut"):
        await _all(server, 0, ranges)
    assert len(server.asked) == 5


@pytest.mark.parametrize("ranges", [1, 3])
async def test_other_failures_end_at_once(ranges: int) -> None:
    server = _Server([-1, -2] if ranges > 1 else [-2])
    with pytest.raises(NotFound, match="it went away"):
        await _all(server, 0, ranges)


@pytest.mark.parametrize("ranges", [1, 3])
async def test_more_than_announced(ranges: int) -> None:
    server = _Server(data=_DATA + b"x", knows_ranges=False)
    with pytest.raises(FailedPrecondition, match="sends more than the 100000 bytes"):
        await _all(server, 0, ranges)


async def test_less_than_announced() -> None:
    with pytest.raises(Unavailable, match="sent 99999 of 100000 bytes"):
        await _all(_Server(data=_DATA[:-1]))


async def test_who_stops_leaves_nothing() -> None:
    server = _Server()
    pieces = blob_bytes(cast(Repository, server), _BLOB, ranges=4)
    async with aclosing(pieces):
        async for _ in pieces:
            if len(server.asked) > 3:
                break
    assert server.open_now == 0


async def test_bandwidth() -> None:
    limits = Limits(bandwidth=1_000_000)
    pieces = blob_bytes(cast(Repository, _Server()), _BLOB, limits=limits)
    async with aclosing(pieces):
        began = asyncio.get_running_loop().time()
        assert len(b"".join([piece async for piece in pieces])) == len(_DATA)
    assert asyncio.get_running_loop().time() - began >= 0.099
