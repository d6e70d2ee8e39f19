"""Many ingests before a disk that stands still: what they hold together has a bound."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisord.content import behind
from supervisord.content.ingest import Ingest

PIECE = bytes(32 << 10)  # small ones are hashed without a thread that others could hold up
INGESTS = 40
SIZE = 2 << 20


async def test_what_many_ingests_hold_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "MOST_OF_ONE", 1 << 20)
    monkeypatch.setattr(behind, "MOST_OF_ALL", 2 << 20)
    monkeypatch.setattr(behind, "LEAST_OF_ONE", 64 << 10)
    gate, real = threading.Event(), os.pwrite

    def standing(descriptor: int, data: memoryview, offset: int) -> int:
        gate.wait()
        return real(descriptor, data, offset)

    with ThreadPoolExecutor(4) as executor:
        together = behind.Behind()
        ingests = [
            await Ingest.open(tmp_path / str(number), "sha256", executor, together)
            for number in range(INGESTS)
        ]
        monkeypatch.setattr(os, "pwrite", standing)

        async def write(ingest: Ingest) -> None:
            for _ in range(SIZE // len(PIECE)):
                await ingest.write(PIECE)

        writing = [asyncio.create_task(write(ingest)) for ingest in ingests]
        try:
            before = -1
            while (held := sum(ingest._behind for ingest in ingests)) != before:
                before = held
                for _ in range(2000):
                    await asyncio.sleep(0)
            assert held == together.bytes
            assert 2 << 20 < held <= (2 << 20) + INGESTS * ((64 << 10) + len(PIECE))
        finally:
            gate.set()
            await asyncio.gather(*writing)
            for ingest in ingests:
                await ingest.close()
    assert {(tmp_path / str(n)).stat().st_size for n in range(INGESTS)} == {SIZE}
    assert together.bytes == 0
