"""When memory is given back: after the last stream, if they have moved much."""

from __future__ import annotations

from supervisord.services.traffic import Traffic


async def test_the_last_of_large_streams_gives_memory_back() -> None:
    given: list[str] = []
    traffic = Traffic(lambda: given.append("back"))
    traffic.began()
    traffic.began()
    await traffic.ended(1 << 30)
    assert given == []
    await traffic.ended(0)
    assert given == ["back"]


async def test_small_streams_give_it_back_together() -> None:
    given: list[str] = []
    traffic = Traffic(lambda: given.append("back"))
    for _ in range(40):
        traffic.began()
        await traffic.ended(1 << 20)
    assert len(given) == 2
