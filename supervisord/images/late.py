"""Transfers that are loaded when somebody first transfers something.

Half of a daemon's modules are for transfers, and many daemons (dockerd's, a kubelet's between two
deployments) never see one: neither their start nor their memory pays for it. Made by the daemon,
asked by ``services.transfer_late``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from supervisord.contracts.leases import LeaseStore

if TYPE_CHECKING:
    from .transfers import Transfers

TRANSFER = "supervisord.io/transfer"
"""The label of leases that are made for a transfer."""


class LateTransfers:
    """``make`` is called once, at the first ``get``; one that has failed is called again."""

    def __init__(self, make: Callable[[], Awaitable[Transfers]]) -> None:
        self._make = make
        self._made: Transfers | None = None
        self._making = asyncio.Lock()

    async def get(self) -> Transfers:
        """The transfers. Raises what making them does."""
        async with self._making:
            if self._made is None:
                self._made = await self._make()
            return self._made

    async def recover(self, begun: Sequence[tuple[str, str]]) -> None:
        """See ``begun``; loads nothing where there were none."""
        if begun:
            await (await self.get()).recover(begun)


def begun(leases: LeaseStore, namespaces: Iterable[str]) -> list[tuple[str, str]]:
    """The transfers that did not come to their end: namespaces, and the ids of their leases.

    Asked before anybody is served: later there are leases of transfers that go on."""
    return [
        (namespace, lease.id)
        for namespace in namespaces
        for lease in leases.list(namespace, [f'labels."{TRANSFER}"'])
    ]
