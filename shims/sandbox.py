"""The ttrpc Sandbox service: a shim that holds the containers of a pod.

There is no process of the sandbox's own: the shim is it, and its pid is the shim's. It keeps the
network namespace in being, takes containers while it is ready (``service`` asks ``check``), and
stays when the last one is deleted, until it is shut down. Stopping it ends all processes of its
containers, which stay to be deleted. Imported with the first request for it, so that other shims
do not carry it.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass

from protos.containerd.runtime.sandbox.v1 import sandbox_pb2 as pb
from protos.containerd.types import types_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

from . import log
from .bundle import Bundle
from .container import Container
from .loop import Future, Loop

if TYPE_CHECKING:
    from .rpc import Methods
    from .service import TaskService

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Sandbox"]

READY = "SANDBOX_READY"
NOT_READY = "SANDBOX_NOTREADY"

_SIGTERM = 15
_SIGKILL = 9
_KILLED_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}


class Sandbox:
    """One sandbox and what it holds."""

    def __init__(self, loop: Loop, request: Any, netns: int) -> None:
        self.id: str = request.sandbox_id
        self.bundle: str = request.bundle_path
        self.netns_path: str = request.netns_path
        self.annotations: Mapping[str, str] = dict(request.annotations)
        self.created_at = time.time_ns()
        self.exited_at = 0
        self.ready = False
        self.ended: Future[int] = Future(loop)
        """The time of its end."""
        self._netns = netns

    def check(self) -> None:
        """Raises FailedPrecondition unless containers may come."""
        if not self.ready:
            raise FailedPrecondition(f"sandbox {self.id} is not ready")

    def end(self) -> None:
        """It takes no containers any more, and lets go of the network."""
        self.ready = False
        if not self.ended.done:
            self.exited_at = time.time_ns()
            self.ended.set(self.exited_at)
        if self._netns >= 0:
            os.close(self._netns)
            self._netns = -1


class SandboxService:
    """Serves the one sandbox that a shim may be."""

    def __init__(self, loop: Loop, tasks: TaskService, shutdown: Callable[[], None]) -> None:
        self._loop = loop
        self._tasks = tasks
        self._shutdown = shutdown
        self._stopping = False

    async def CreateSandbox(self, request: Any) -> pb.CreateSandboxResponse:
        id = request.sandbox_id
        if self._tasks.sandbox is not None:
            raise AlreadyExists(f"sandbox {self._tasks.sandbox.id}: already exists")
        if not id or not request.bundle_path:
            raise InvalidArgument("sandbox_id, bundle_path: must be given")
        netns = -1
        if request.netns_path:
            from supervisord.linux.netns import open_netns

            netns = open_netns(request.netns_path)
        try:
            Bundle(request.bundle_path).mount(request.rootfs)
        except BaseException:
            if netns >= 0:
                os.close(netns)
            raise
        self._tasks.sandbox = Sandbox(self._loop, request, netns)
        log.info("sandbox created", id=id)
        return pb.CreateSandboxResponse()

    async def StartSandbox(self, request: Any) -> pb.StartSandboxResponse:
        sandbox = self._sandbox(request)
        if sandbox.ready:
            raise FailedPrecondition(f"sandbox {sandbox.id} is already running")
        if sandbox.ended.done or self._stopping:
            raise FailedPrecondition(f"sandbox {sandbox.id} has been stopped")
        sandbox.ready = True
        response = pb.StartSandboxResponse(pid=os.getpid())
        _set_time(response.created_at, sandbox.created_at)
        return response

    async def Platform(self, request: Any) -> pb.PlatformResponse:
        self._sandbox(request)
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return pb.PlatformResponse(
            platform=types_pb2.Platform(os="linux", architecture=architecture, variant=variant)
        )

    async def StopSandbox(self, request: Any) -> pb.StopSandboxResponse:
        await self._stop(self._sandbox(request), request.timeout_secs)
        return pb.StopSandboxResponse()

    async def WaitSandbox(self, request: Any) -> pb.WaitSandboxResponse:
        exited_at = await self._sandbox(request).ended
        response = pb.WaitSandboxResponse(exit_status=0)
        _set_time(response.exited_at, exited_at)
        return response

    async def SandboxStatus(self, request: Any) -> pb.SandboxStatusResponse:
        sandbox = self._sandbox(request)
        response = pb.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            pid=os.getpid(),
            state=READY if sandbox.ready else NOT_READY,
        )
        _set_time(response.created_at, sandbox.created_at)
        if sandbox.exited_at:
            _set_time(response.exited_at, sandbox.exited_at)
        if request.verbose:
            response.info["info"] = self._info(sandbox)
        return response

    async def PingSandbox(self, request: Any) -> pb.PingResponse:
        self._sandbox(request)
        return pb.PingResponse()

    async def ShutdownSandbox(self, request: Any) -> pb.ShutdownSandboxResponse:
        """Ends the shim, once the answer is on its way, with all that is in it."""
        sandbox = self._tasks.sandbox
        if sandbox is not None:
            self._sandbox(request)
            await self._stop(sandbox, 0)
            await self._tasks.abandon()
            Bundle(sandbox.bundle).unmount()
            self._tasks.sandbox = None
        elif not self._tasks.idle:
            raise NotFound(f"sandbox {request.sandbox_id}: not found")
        self._shutdown()
        return pb.ShutdownSandboxResponse()

    async def SandboxMetrics(self, request: Any) -> pb.SandboxMetricsResponse:
        from .sandbox_metrics import together

        sandbox = self._sandbox(request)
        response = pb.SandboxMetricsResponse()
        metric = response.metrics
        metric.id = sandbox.id
        _set_time(metric.timestamp, time.time_ns())
        data = together([c.cgroup for c in self._tasks.containers.values() if c.cgroup is not None])
        metric.data.type_url = data.DESCRIPTOR.full_name
        metric.data.value = data.SerializeToString()
        return response

    # Ends ---------------------------------------------------------------------------------

    async def _stop(self, sandbox: Sandbox, seconds: int) -> None:
        """Ends all processes: asked to first if they are given ``seconds`` for it.

        Raises DeadlineExceeded; the sandbox is then still to be stopped."""
        self._stopping = True
        sandbox.ready = False
        await self._until(lambda: not self._tasks.is_creating, _KILLED_SECONDS, "creation")
        if seconds:
            await self._signal(_SIGTERM)
            try:
                await self._until(self._all_ended, seconds, "")
            except DeadlineExceeded as error:
                log.debug("processes of the sandbox go on", id=sandbox.id, error=error)
        await self._signal(_SIGKILL)
        await self._until(self._all_ended, _KILLED_SECONDS, "the end of its containers")
        sandbox.end()

    async def _signal(self, number: int) -> None:
        for container in self._running():
            try:
                await container.kill("", number, number == _SIGKILL)
            except Error as error:  # it has ended meanwhile; else the wait tells
                log.debug("signal not sent", id=container.id, signal=number, error=error)

    def _running(self) -> Sequence[Container]:
        return [c for c in self._tasks.containers.values() if c.init.exit is None]

    def _all_ended(self) -> bool:
        return not self._running()

    async def _until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"sandbox: {what}: not in {seconds:g} s")
            await self._loop.sleep(_LOOK_SECONDS)

    # Telling ------------------------------------------------------------------------------

    def _sandbox(self, request: Any) -> Sandbox:
        sandbox = self._tasks.sandbox
        if sandbox is None or sandbox.id != request.sandbox_id:
            raise NotFound(f"sandbox {request.sandbox_id}: not found")
        return sandbox

    def _info(self, sandbox: Sandbox) -> str:
        return json.dumps(
            {
                "pid": os.getpid(),
                "bundle": sandbox.bundle,
                "netnsPath": sandbox.netns_path,
                "annotations": sandbox.annotations,
                "containers": [
                    {"id": c.id, "pid": c.init.pid, "status": c.init.status}
                    for c in self._tasks.containers.values()
                ],
            }
        )


def methods(loop: Loop, tasks: TaskService, shutdown: Callable[[], None]) -> Methods:
    """The methods of a shim's sandbox service, for ``rpc.Server``."""
    service = SandboxService(loop, tasks, shutdown)

    def handler(name: str) -> Callable[[Any, Any], Any]:
        call = getattr(service, name)
        return lambda _, request: call(request)

    return {
        (DESCRIPTOR.full_name, method.name): (
            handler(method.name),
            GetMessageClass(method.input_type),
        )
        for method in DESCRIPTOR.methods
    }


def _set_time(time: Any, nanoseconds: int) -> None:
    time.seconds, time.nanos = divmod(nanoseconds, 1_000_000_000)
