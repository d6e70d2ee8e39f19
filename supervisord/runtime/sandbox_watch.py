"""Watches sandboxes until they end, and tells what became of them.

A sandbox ends when its shim says so, or when that is gone. Its waiters are answered, its end is
noted in its bundle, and published once, whether anybody waits or not.
"""

from __future__ import annotations

import asyncio
import logging
import time

from google.protobuf.message import Message

from protos.containerd.events import events_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, NotFound, Unavailable, Unimplemented
from supervisord.contracts.events import Publisher
from supervisord.contracts.sandboxes import SandboxExit

from .sandbox import KILLED, Instance
from .sandbox_bundle import write_exit
from .sandbox_creation import SandboxCreation
from .sandbox_shim import SandboxShim

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0


class SandboxWatch:
    """Works for ``sandboxes``; ``watching`` owns its tasks."""

    def __init__(
        self, creation: SandboxCreation, publisher: Publisher, watching: TaskOwner
    ) -> None:
        self._creation = creation
        self._publisher = publisher
        self._watching = watching

    def begin(self, one: Instance) -> None:
        """Goes on until the sandbox has ended."""
        self._watching.spawn(self._watch(one), f"watch {one.id}")

    async def _watch(self, one: Instance) -> None:
        pause = _FIRST_PAUSE
        while one.exit is None:
            alive = one.is_alive()  # asked first: it may die between the two
            try:
                shim = await one.reach()
                self.ended(one, await self._end_of(shim))
                return
            except NotFound as error:
                log.warning("sandbox %s: its shim knows of none: %s", one.id, error)
                break
            except Error as error:
                log.debug("sandbox %s: %s", one.id, error)
                if not alive and isinstance(error, Unavailable):
                    break
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        if one.exit is not None:
            return
        if not one.is_alive():
            log.warning("the shim of sandbox %s is dead", one.id)
            if one.record.binary:
                await self._creation.clean_up(one)
        self.ended(one, SandboxExit(KILLED, time.time_ns()))

    @staticmethod
    async def _end_of(shim: SandboxShim) -> SandboxExit:
        """Waits for the end as the shim tells it; one that cannot tell ends with its connection."""
        try:
            return await shim.wait()
        except Unimplemented:
            await shim.closed
            raise Unavailable("the connection is lost") from None

    def ended(self, one: Instance, exit: SandboxExit) -> None:
        """The sandbox has ended: answers, notes, publishes. Said again, it is ignored."""
        if one.exit is not None:
            return
        one.end(exit)
        try:
            write_exit(one.bundle, one.record.pid, exit)
        except OSError as error:  # it has been removed, or the disk is full
            log.debug("sandbox %s: its end is not noted: %s", one.id, error)
        event = events_pb2.SandboxExit(sandbox_id=one.id, exit_status=exit.exit_status)
        event.exited_at.FromNanoseconds(exit.exited_at)
        self.publish(one, "exit", event)

    def publish(self, one: Instance, what: str, event: Message) -> None:
        """Publishes ``/sandboxes/WHAT``."""
        self._publisher.publish(one.bundle.namespace, f"/sandboxes/{what}", event)
