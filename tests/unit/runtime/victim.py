"""A daemon's worth of parts that makes and deletes tasks until it is killed.

``python -m tests.unit.runtime.victim BASE ROOTFS``; see ``test_kill``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from supervisord.runtime.zygote import Zygote

from .conftest import NS, Engine


async def lives(engine: Engine, id: str, *args: str) -> None:
    while True:
        await engine.run(id, *args)
        if args[0] == "sleep":
            await engine.manager.kill(NS, id, 9)
        await engine.manager.wait(NS, id)
        await engine.manager.delete(NS, id)


async def main() -> None:
    zygote = Zygote()
    await zygote.start("shim")
    engine = Engine(Path(sys.argv[1]), Path(sys.argv[2]), zygote)
    await engine.open()
    print("ready", flush=True)
    await asyncio.gather(
        lives(engine, "a", "true"), lives(engine, "b", "sleep", "60"), lives(engine, "c", "true")
    )


if __name__ == "__main__":
    asyncio.run(main())
