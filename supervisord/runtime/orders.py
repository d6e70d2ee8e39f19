"""Creations under way: who waits for them, and which request may join which.

A create that asks for the same as one that is still being made joins it, whoever sent it, and gets
its answer. When the last caller goes away, a creation that has begun goes on as an abandoned one;
one that has not never does. Called by the task manager, on the event loop only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.containers import Container
from supervisord.contracts.tasks import CreateTask

from .task import Task


@dataclass(slots=True)
class Order:
    """One creation: what was asked for, how many still wait for it, and whether it has begun."""

    namespace: str
    container: Container
    request: CreateTask
    waiters: int = 0
    begun: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and id of the task."""
        return self.namespace, self.container.id

    @property
    def is_abandoned(self) -> bool:
        """Whether everybody who asked for it went away."""
        return self.waiters == 0

    def asks_for_the_same(self, other: Order) -> bool:
        """Whether the other's task would do for this one."""
        return (self.container, self.request) == (other.container, other.request)

    @property
    def digest(self) -> str:
        """The same for an order that asks for the same, also of a later daemon."""
        spec = self.container.spec.value  # apart from the rest: it is long, and bytes already
        bare = replace(self.container, spec=replace(self.container.spec, value=b""))
        asked = msgspec.json.encode((len(spec), bare, self.request), order="deterministic")
        digest = hashlib.sha256(asked)
        digest.update(spec)
        return digest.hexdigest()


class Orders:
    """The orders of all tasks that are being made or wait for their turn."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._open: dict[tuple[str, str], list[tuple[Order, asyncio.Task[Task]]]] = {}

    async def place(self, order: Order, make: Callable[[Order], Coroutine[Any, Any, Task]]) -> Task:
        """The task of an equal order that is open, else of ``make``. Raises what that raises."""
        order, making = self._joined(order) or self._begun(order, make)
        order.waiters += 1
        try:
            return await asyncio.shield(making)
        finally:
            order.waiters -= 1
            if order.is_abandoned and not order.begun:
                making.cancel()

    def _joined(self, order: Order) -> tuple[Order, asyncio.Task[Task]] | None:
        for other, making in self._open.get(order.key, ()):
            if order.asks_for_the_same(other) and not making.cancelling():
                return other, making
        return None

    def _begun(
        self, order: Order, make: Callable[[Order], Coroutine[Any, Any, Task]]
    ) -> tuple[Order, asyncio.Task[Task]]:
        making = self._owner.spawn(make(order), f"create {order.container.id}")
        self._open.setdefault(order.key, []).append((order, making))
        return order, making

    def close(self, order: Order) -> None:
        """Nobody joins it any more: it has its answer. An order that is not open is ignored."""
        left = [entry for entry in self._open.get(order.key, ()) if entry[0] is not order]
        if left:
            self._open[order.key] = left
        else:
            self._open.pop(order.key, None)
