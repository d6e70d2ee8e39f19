"""The root filesystems of tasks, where they need the mount manager: activated before the shim is
asked, under the task's id, and given back when the task is gone.

The activation refers to its container: one that nobody gave back, because the daemon died, ends
with that, or makes way for the next task.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from protos.containerd.types import types_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import AlreadyExists, Error, NotFound
from supervisord.contracts.mounts import ActivateOptions, MountManager
from supervisord.contracts.scope import Scope
from supervisord.contracts.tasks import CreateTask
from supervisord.contracts.typed import pack

from .info import runtime_info
from .oci import OciRuntimes

log = logging.getLogger(__name__)

CONTAINER_LABEL = "containerd.io/gc.bref.container"
HANDLED = "containerd.io/runtime-allow-mounts"
"""Where a foreign shim tells, in its info, which types of mounts it manages by itself."""

_OURS = ("erofs",)


class Rootfs:
    """``manager`` is None where there is none: mounts reach the shims as they are then."""

    def __init__(
        self, manager: MountManager | None, runtimes: OciRuntimes, owner: TaskOwner
    ) -> None:
        self._manager = manager
        self._runtimes = runtimes
        self._owner = owner

    async def ready(
        self, namespace: str, id: str, request: CreateTask, binary: str, undo: AsyncExitStack
    ) -> CreateTask:
        """The request with mounts that its shim can make; ``binary`` is a foreign one. The caller
        holds the lock of the task's name, of which there is no task.

        Raises AlreadyExists (an activation of that name that is a client's), and what ``activate``
        raises."""
        manager = self._manager
        if manager is None or not manager.wanted(request.rootfs):
            return request
        allowed = await self._handled(binary) if binary else _OURS
        options = ActivateOptions({CONTAINER_LABEL: id}, allowed=allowed)
        if not manager.wanted(request.rootfs, options):
            return request
        await self._make_way(manager, namespace, id)
        made = await manager.activate(Scope(namespace), id, request.rootfs, options)
        undo.push_async_callback(self._give_back, manager, namespace, id)
        return replace(request, rootfs=tuple(made.system))

    def release(self, namespace: str, id: str) -> None:
        """Gives back, in the background, what a task that is gone had."""
        if self._manager is None:
            return
        try:
            found = self._manager.info(namespace, id)
        except NotFound:
            return
        if found.labels.get(CONTAINER_LABEL) == id:
            work = self._manager.deactivate(namespace, id, only=found)
            self._owner.spawn(work, f"deactivate {id}")

    async def _make_way(self, manager: MountManager, namespace: str, id: str) -> None:
        try:
            found = manager.info(namespace, id)
        except NotFound:
            return
        if found.labels.get(CONTAINER_LABEL) != id:
            raise AlreadyExists(f"mount {id!r}: already exists")
        await manager.deactivate(namespace, id, only=found)

    async def _give_back(self, manager: MountManager, namespace: str, id: str) -> None:
        try:
            await manager.deactivate(namespace, id)
        except Error as error:
            log.warning("mounts of task %s stay until they are collected: %s", id, error)

    async def _handled(self, binary: str) -> Sequence[str]:
        """What a foreign shim says of itself."""
        try:
            request = types_pb2.RuntimeRequest(runtime_path=binary)
            answer = await runtime_info(pack(request), self._runtimes)
            info = types_pb2.RuntimeInfo.FromString(answer.value)
        except Error as error:
            log.warning("shim %s does not tell what it mounts: %s", binary, error)
            return ()
        return [word.strip() for word in info.annotations.get(HANDLED, "").split(",") if word]
