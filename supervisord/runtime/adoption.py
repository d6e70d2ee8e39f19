"""Gives a container whose shim has died a new shim, as long as its init lives.

The new shim has a socket of its own, because others may have shared the old one: containers of a
group get a shim each, and the next to join the group joins one of those. Its address is on disk
before it is there, so a daemon that dies meanwhile finds it, or tries again. ``recovery`` calls
this under the lock of the task's name, and buries what cannot be taken over.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from supervisord.contracts.errors import DeadlineExceeded, Error, Unavailable
from supervisord.linux import process

from .burial import Burial
from .groups import SANDBOX, Groups
from .launch import Adopt, Launcher, Settings, listen
from .oci import OciRuntimes
from .shim import Shim
from .task import Task

log = logging.getLogger(__name__)

_SECONDS = 30.0
"""How long a new shim may take to find its way; it asks the runtime."""


class Adoption:
    """Launches shims for orphans."""

    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        burial: Burial,
        runtimes: OciRuntimes,
        groups: Groups,
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._burial = burial
        self._runtimes = runtimes
        self._groups = groups

    async def adopt(self, task: Task) -> Shim:
        """The new shim, connected; the task's record names it.

        Raises Unavailable where no shim could be had, DeadlineExceeded where one did not get
        that far, another Error where the container is not to be had."""
        await self._burial.end_commands(task.bundle)
        pidfd = task.open_init()
        old = task.record
        group = "" if old.group.startswith(SANDBOX) else old.group  # a sandbox ends with its shim
        record = replace(
            old, address=self._settings.new_address(), pid=0, start_time=0, group=group
        )
        runtime = await self._runtimes.default()
        async with AsyncExitStack() as undo:
            undo.callback(os.close, pidfd)
            async with AsyncExitStack() as failed:
                await asyncio.to_thread(task.bundle.write_record, record)
                self._groups.leave(task.key, old)
                task.record = record
                Path(old.address).unlink(missing_ok=True)  # nobody listens there any more
                listener = listen(record.address)
                failed.callback(Path(record.address).unlink, missing_ok=True)
                failed.callback(listener.close)
                client, forking = await self._launcher.launch(
                    task.bundle,
                    record.address,
                    listener,
                    runtime,
                    Adopt(record.init_pid, record.init_start, pidfd),
                )
                shim = Shim(client, *task.key, record.version, self._settings.shim_seconds)
                failed.callback(shim.close)
                pid = await forking
                record = replace(record, pid=pid, start_time=process.start_time(pid) or 0)
                task.record = record
                failed.push_async_callback(self._burial.end_shim, shim, record)
                try:
                    await shim.connect(_SECONDS)
                except Unavailable as error:  # it died
                    raise DeadlineExceeded(f"new shim: {task.bundle.log_tail()}") from error
                await asyncio.to_thread(task.bundle.write_record, record)
                failed.pop_all()
        self._groups.join((task.bundle.namespace, group or task.id), task.key, record)
        log.info("task %s has a new shim: %d after %d", task.id, record.pid, old.pid)
        return shim


def may_do_better(error: Error) -> bool:
    """Whether another try may succeed where this one failed."""
    return isinstance(error, (Unavailable, DeadlineExceeded))
