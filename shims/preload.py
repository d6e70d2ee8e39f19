"""Prepares the interpreter that shims are forked from.

What is imported and run here, before the first fork, is memory that all shims share; what a shim
does for the first time itself is memory of its own. So a whole life of a container is rehearsed,
with ``true`` in the place of runc and a shell in the place of the container.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
# ruff: noqa: PTH102, PTH103, PTH106, PTH108, PTH114, PTH211
from __future__ import annotations

import os
from _socket import AF_UNIX, socket
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Error
from supervisord.linux import cgroups, process

from . import ahead, log
from .bundle import Bundle
from .command import Streams, spawn
from .create import Defaults, carry_out
from .loop import Loop
from .publisher import Publisher
from .reaper import Reaper
from .rpc import Client, Server
from .service import ABANDONABLE, METHODS, TaskService

_ROUNDS = 10
_SECONDS = 10.0
_TEMPORARY = "/tmp"  # noqa: S108 - the name below it is random, and making it refuses a taken one


def warm() -> None:
    """Imports what a shim imports late, and rehearses."""
    if cgroups.is_unified():
        from supervisord.linux import cgroups_v2  # noqa: F401
    else:
        from supervisord.linux import cgroups_v1  # noqa: F401
    folder = f"{os.environ.get('TMPDIR') or _TEMPORARY}/supervisord-zygote-{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)
    try:
        for number in range(_ROUNDS):
            _Rehearsal(f"{folder}/{number}").run()
    except (Error, OSError) as error:
        log.warning("shims will take more memory: no rehearsal", error=error)
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    """All of a folder; what cannot be removed stays."""
    for parent, folders, files in os.walk(folder, topdown=False):
        try:
            for name in files:
                os.unlink(f"{parent}/{name}")
            for name in folders:
                path = f"{parent}/{name}"
                os.unlink(path) if os.path.islink(path) else os.rmdir(path)
        except OSError as error:
            log.warning("rehearsal left something", folder=parent, error=error)
    os.rmdir(folder)


_POOL = 16 << 10
_POOL_HEADER = 48
_LARGEST_BLOCK = 512
_BYTES_HEADER = 33
_filling: list[object] = []


def fill_holes() -> None:
    """Takes up all free blocks between living objects. What a shim allocates then lies together
    in fresh pages, and not in a page of everyone's for each size; the last call before forks."""
    for size in range(_POOL_HEADER, _LARGEST_BLOCK + 1, 16):
        _fill(lambda size=size: bytes(size - _BYTES_HEADER))  # type: ignore[misc]
    _fill(lambda: 0.5 + len(_filling))  # 32 bytes and less


def _fill(make: Callable[[], object]) -> None:
    for _ in range(_ROUNDS * _POOL):
        block = make()
        if id(block) % _POOL == _POOL_HEADER:  # the first of a pool that was empty
            return
        _filling.append(block)


class _Rehearsal:
    """One life of a container that is none."""

    def __init__(self, bundle: str) -> None:
        self._bundle = bundle
        os.mkdir(bundle, 0o700)
        Bundle(bundle).write("config.json", "{}")
        self._loop = Loop()
        self._reaper = Reaper(self._loop)
        address = f"{bundle}/s"
        listener = socket(AF_UNIX)
        listener.bind(address)
        listener.listen(4)
        publisher = Publisher(self._loop, "", "rehearsal")
        os.symlink("/bin/true", f"{bundle}/runc")
        self._state = f"{bundle}/state/rehearsal/rehearsal"
        os.makedirs(self._state)
        os.mkfifo(f"{self._state}/exec.fifo")
        defaults = Defaults("rehearsal", f"{bundle}/runc", f"{bundle}/state")
        helper = ahead.make(carry_out)
        service = TaskService(self._loop, self._reaper, publisher, defaults, lambda: None, helper)
        self._server = Server(
            self._loop, listener.detach(), METHODS, service, abandonable=ABANDONABLE
        )
        self._client = Client(self._loop, address)

    def run(self) -> None:
        try:
            self._loop.run_until(self._loop.spawn(self._live(), "rehearsal"))
        finally:
            self._client.close()
            self._server.close()
            self._reaper.close()
            self._loop.close()

    async def _live(self) -> None:
        process.set_subreaper(False)
        read, write = os.pipe2(os.O_CLOEXEC)
        script = 'echo 0 > "$0"; read line'
        pid = spawn(["/bin/sh", "-c", script, f"{self._state}/exec.fifo"], Streams(stdin=read))
        os.close(read)
        try:
            Bundle(self._bundle).write("init.pid", str(pid))
            created = v3.CreateTaskRequest(id="rehearsal", bundle=self._bundle)
            created.rootfs.add(type="bind", source=self._bundle, options=["rbind", "ro"])
            await self._call("Create", created, v3.CreateTaskResponse)
            await self._call("Start", v3.StartRequest(id="rehearsal"), v3.StartResponse)
            await self._call("State", v3.StateRequest(id="rehearsal"), v3.StateResponse)
        finally:
            os.close(write)
        await self._call("Wait", v3.WaitRequest(id="rehearsal"), v3.WaitResponse)
        await self._call("Delete", v3.DeleteRequest(id="rehearsal"), v3.DeleteResponse)
        await self._call("Shutdown", v3.ShutdownRequest(id="rehearsal"), Empty)

    async def _call(self, method: str, request: Any, kind: Any) -> None:
        await self._client.call(
            "containerd.task.v3.Task", method, request, kind, seconds=_SECONDS, metadata={}
        )
