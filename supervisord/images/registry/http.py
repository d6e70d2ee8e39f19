"""aiohttp, imported when a registry is first talked to: that takes longer than all the rest of the
daemon's start, and a quarter of its memory.

``ready`` imports it in a thread; whoever opens a session awaits that.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp
else:

    class _Later:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("aiohttp"), name)

    aiohttp = _Later()

__all__ = ["aiohttp", "ready"]


async def ready() -> None:
    """Imports it, off the event loop; at once where that has been done."""
    await asyncio.to_thread(importlib.import_module, "aiohttp")
