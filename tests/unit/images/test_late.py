"""Transfers that are loaded at their first use, and what an earlier daemon has left in half."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from supervisord.contracts.errors import Unavailable
from supervisord.contracts.leases import Lease
from supervisord.images.late import TRANSFER, LateTransfers, begun
from supervisord.images.transfers import Transfers
from supervisord.metadata.store import Metadata


class Recovering:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def recover(self, begun: Any) -> None:
        self.asked.append(begun)


async def test_they_are_made_once() -> None:
    made: list[Recovering] = []

    async def make() -> Transfers:
        made.append(Recovering())
        if len(made) == 1:
            raise Unavailable("not yet")
        return cast(Transfers, made[-1])

    late = LateTransfers(make)
    await late.recover([])
    assert not made
    with pytest.raises(Unavailable):
        await late.get()
    await late.recover([("default", "one")])
    assert await late.get() is cast(Transfers, made[1])
    assert made[1].asked == [[("default", "one")]]
    assert len(made) == 2


async def test_only_leases_of_transfers_are_told(tmp_path: Path) -> None:
    metadata = await Metadata.open(tmp_path, snapshotters={}, content_path=tmp_path / "content")
    try:
        await metadata.leases.create("a", Lease("plain"))
        await metadata.leases.create("b", Lease("moved", labels={TRANSFER: "running"}))
        assert begun(metadata.leases, ["a", "b"]) == [("b", "moved")]
    finally:
        await metadata.close()
