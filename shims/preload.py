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

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.services.events.ttrpc.v1 import events_ttrpc_pb2
from protos.containerd.task.v3 import shim_pb2 as v3
from supervisord.contracts.errors import Error
from supervisord.linux import cgroups, heap, process

from . import ahead, log, worker
from .bundle import Bundle
from .command import Streams, spawn
from .create import carry_out
from .loop import Loop
from .publisher import SERVICE
from .reaper import Reaper
from .rpc import Client, Methods, Server

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
    heap.use_up()  # larger ones, and those of libraries


def _fill(make: Callable[[], object]) -> None:
    for _ in range(_ROUNDS * _POOL):
        block = make()
        if id(block) % _POOL == _POOL_HEADER:  # the first of a pool that was empty
            return
        _filling.append(block)


class _Rehearsal:
    """One life of a container that is none. The shim is ``worker.main`` itself; who asks it and who
    takes its events are on the same loop."""

    def __init__(self, bundle: str) -> None:
        self._bundle = bundle
        os.mkdir(bundle, 0o700)
        Bundle(bundle).write("config.json", "{}")
        self._loop = Loop()
        self._reaper = Reaper(self._loop)
        self._begun = worker.Beginning(self._loop, self._reaper, ahead.make(carry_out))
        self._listener = _listen(f"{bundle}/s")
        self._events = Server(self._loop, _listen(f"{bundle}/e"), _EVENTS, None)
        os.symlink("/bin/true", f"{bundle}/runc")
        self._state = f"{bundle}/state/rehearsal/rehearsal"
        os.makedirs(self._state)
        os.mkfifo(f"{self._state}/exec.fifo")
        self._client = Client(self._loop, f"{bundle}/s")

    def run(self) -> None:
        arguments = {
            "namespace": "rehearsal",
            "id": "rehearsal",
            "bundle": self._bundle,
            "address": f"{self._bundle}/s",
            "publish": f"{self._bundle}/e",
            "publish_prompt": True,
            "runtime": f"{self._bundle}/runc",
            "runtime_root": f"{self._bundle}/state",
            "runtime_seconds": _SECONDS,
            "log_level": "warning",
            "exec_by_hand": True,
            "sched_core": False,
        }
        log_file = os.dup(2)  # which becomes what it was
        life = self._loop.spawn(self._live(), "rehearsal")
        try:
            worker.main(arguments, (self._listener, log_file), self._begun)
            life.result()
        finally:
            self._client.close()
            self._events.close()
            self._reaper.close()
            self._loop.close()

    async def _live(self) -> None:
        try:
            await self._all_of_it()
        finally:
            self._loop.stop()

    async def _all_of_it(self) -> None:
        process.set_subreaper(False)
        read, write = os.pipe2(os.O_CLOEXEC)
        script = 'echo 0 > "$0"; read line'
        pid = spawn(["/bin/sh", "-c", script, f"{self._state}/exec.fifo"], Streams(stdin=read))
        os.close(read)
        try:
            Bundle(self._bundle).write("init.pid", str(pid))
            created = v3.CreateTaskRequest(id="rehearsal", bundle=self._bundle)
            created.rootfs.add(type="bind", source=self._bundle, options=["rbind", "ro"])
            created.options.type_url = options_pb2.Options.DESCRIPTOR.full_name
            created.options.value = options_pb2.Options(binary_name="").SerializeToString()
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


async def _forward(_: object, request: object) -> Empty:
    """Takes an event."""
    return Empty()


_EVENTS: Methods = {(SERVICE, "Forward"): (_forward, events_ttrpc_pb2.ForwardRequest)}


def _listen(path: str) -> int:
    listener = socket(AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    return listener.detach()
