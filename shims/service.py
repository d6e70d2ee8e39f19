"""The ttrpc Task service, versions 3 and 2: decodes requests, calls containers, tells events.

Both versions have the same messages on the wire, so one implementation serves both: it reads
fields by name and answers with the messages of version 3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty

from protos.containerd.events import events_pb2
from protos.containerd.runc.v1 import options_pb2
from protos.containerd.task.v2 import shim_pb2 as v2
from protos.containerd.task.v3 import shim_pb2 as v3
from protos.containerd.v1.types import task_pb2
from protos.supervisord.shim.v1 import logs_pb2
from supervisord.contracts.errors import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NotFound,
)
from supervisord.contracts.identifiers import check_identifier
from supervisord.linux import cgroups

from . import log, restore
from .apart import close_apart
from .container import Container
from .create import Defaults, create
from .loop import Future, Loop
from .publisher import Publisher
from .reaper import Exit, Reaper
from .rpc import Methods, bind
from .stdio import Wishes

TYPE_CHECKING = False
if TYPE_CHECKING:  # most shims are none, and do not import it
    from .adopt import Orphan
    from .ahead import Ahead
    from .sandbox import Sandbox

ABANDONABLE = ("Wait", "WaitSandbox")

_REMAINS_SECONDS = 0.05
"""How long after its deletion a container's root filesystem is let go: as a rule the shim has ended
by then."""
_SETTLE_SECONDS = 0.5
"""How long a delete may wait for the daemon to take the events before it."""


class TaskService:
    """All containers of this shim: one as a rule, several when they share a pod's shim."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        publisher: Publisher,
        defaults: Defaults,
        shutdown: Callable[[], None],
        ahead: Ahead | None = None,
    ) -> None:
        """``ahead`` is a fork that may make the first container."""
        self._loop = loop
        self._reaper = reaper
        self._publisher = publisher
        self._defaults = defaults
        self._shutdown = shutdown
        self._ahead = ahead
        self._containers: dict[str, Container] = {}
        self._creating: dict[str, Future[None]] = {}
        self._refusal: Error | None = None
        self.sandbox: Sandbox | None = None
        """The sandbox that this shim is, if it is one."""

    @property
    def containers(self) -> Mapping[str, Container]:
        """By id."""
        return self._containers

    @property
    def is_creating(self) -> bool:
        """Whether a container is being made."""
        return bool(self._creating)

    @property
    def idle(self) -> bool:
        """Whether no sandbox and no container is held or being made."""
        return self.sandbox is None and not self._containers and not self._creating

    @property
    def over(self) -> bool:
        """Whether all containers have ended, and none is being made."""
        return not self._creating and all(
            container.init.exit is not None for container in self._containers.values()
        )

    @property
    def has_bundle(self) -> bool:
        """Whether the folder of the sandbox or of any container is still there."""
        if self.sandbox is not None and os.access(self.sandbox.bundle, os.F_OK):
            return True
        return any(
            os.access(container.bundle.path, os.F_OK) for container in self._containers.values()
        )

    async def abandon(self) -> None:
        """Deletes containers that have ended as well as that goes, for nobody else will."""
        for id, container in list(self._containers.items()):
            try:
                await container.delete("")
            except Error as error:
                log.warning("an abandoned container left something", id=id, error=error)
            self._containers.pop(id, None)

    async def adopt(self, orphan: Orphan) -> None:
        """Takes over a container. If that fails, ``Connect`` tells why."""
        from .adopt import adopt  # once in the life of few shims

        try:
            self._containers[orphan.id] = await adopt(
                self._loop, self._reaper, self._defaults, orphan, self._publisher.publish
            )
        except Error as error:
            log.warning("container not taken over", id=orphan.id, error=error)
            self._refusal = error

    async def Create(self, request: Any) -> v3.CreateTaskResponse:
        id = request.id
        if id in self._containers or id in self._creating:
            raise AlreadyExists(f"task {id}: already exists")
        if self.sandbox is not None:
            self.sandbox.check()
        self._creating[id] = self._loop.future()
        try:
            ahead, self._ahead = self._ahead, None
            container = await create(
                self._loop, self._reaper, self._defaults, request, self._publisher.publish, ahead
            )
        finally:
            self._creating.pop(id).set(None)
        self._containers[id] = container
        self._loop.soon(lambda: self._tell_created(request, container.init.pid))
        return v3.CreateTaskResponse(pid=container.init.pid)

    def _tell_created(self, request: Any, pid: int) -> None:
        event = events_pb2.TaskCreate(
            container_id=request.id,
            bundle=request.bundle,
            rootfs=request.rootfs,
            checkpoint=request.checkpoint,
            pid=pid,
        )
        io = event.io
        io.stdin, io.stdout, io.stderr = request.stdin, request.stdout, request.stderr
        io.terminal = request.terminal
        self._publisher.publish("/tasks/create", event)

    async def Start(self, request: Any) -> v3.StartResponse:
        return v3.StartResponse(pid=await self._container(request).start(request.exec_id))

    async def Exec(self, request: Any) -> Empty:
        container = self._container(request)
        check_identifier(request.exec_id, "exec_id")
        wishes = Wishes(request.stdin, request.stdout, request.stderr, request.terminal)
        container.add_exec(request.exec_id, wishes, _process_spec(request))
        self._publisher.publish(
            "/tasks/exec-added",
            events_pb2.TaskExecAdded(container_id=container.id, exec_id=request.exec_id),
        )
        return Empty()

    async def State(self, request: Any) -> v3.StateResponse:
        container = self._container(request)
        process = container.process(request.exec_id)
        wishes = process.wishes
        response = v3.StateResponse(
            id=process.id,
            bundle=container.bundle.path,
            pid=process.pid,
            status=task_pb2.Status.Value(container.status(process)),
            stdin=wishes.stdin,
            stdout=wishes.stdout,
            stderr=wishes.stderr,
            terminal=wishes.terminal,
            exec_id=request.exec_id,
        )
        if process.ended.done:
            exit = process.ended.result()
            response.exit_status = exit.status
            _set_time(response, exit)
        return response

    async def Wait(self, request: Any) -> v3.WaitResponse:
        exit = await self._container(request).process(request.exec_id).ended
        response = v3.WaitResponse(exit_status=exit.status)
        _set_time(response, exit)
        return response

    async def Kill(self, request: Any) -> Empty:
        await self._container(request).kill(request.exec_id, request.signal, request.all)
        return Empty()

    async def Delete(self, request: Any) -> v3.DeleteResponse:
        being_made = self._creating.get(request.id)
        if being_made is not None:  # a daemon that has died since has begun it
            await being_made
        container = self._container(request)
        pid = container.process(request.exec_id).pid
        exit = await container.delete(request.exec_id)
        response = v3.DeleteResponse(pid=pid, exit_status=exit.status)
        _set_time(response, exit)
        if not request.exec_id:
            self._containers.pop(container.id, None)
            event = events_pb2.TaskDelete(
                container_id=container.id, pid=pid, exit_status=exit.status
            )
            _set_time(event, exit)
            if container.remains >= 0:
                self._loop.later(_REMAINS_SECONDS, lambda: self._let_go(container.remains))
            if not self._publisher.publish_at_once("/tasks/delete", event):
                await self._publisher.settle(_SETTLE_SECONDS)
        return response

    def _let_go(self, remains: int) -> None:
        """Closes what holds a root filesystem. Taking an overlay down writes all of the
        filesystem below it to the disk, which must hold up nobody."""
        if self._containers or self._creating:
            close_apart(remains)
        else:
            os.close(remains)

    async def Pids(self, request: Any) -> v3.PidsResponse:
        container = self._container(request)
        response = v3.PidsResponse()
        if not container.runtime.plain_processes:
            # A sandbox is not its own cgroup's only member, nor are its processes the kernel's.
            for pid in await container.runtime.pids(container.id):
                response.processes.add(pid=pid)
            return response
        execs = {
            process.pid: id
            for id, process in container.execs.items()
            if process.pid and process.exit is None
        }
        for pid in cgroups.pids(_cgroup(container)):
            info = response.processes.add(pid=pid)
            if pid in execs:
                details = options_pb2.ProcessDetails(exec_id=execs[pid])
                info.info.type_url = details.DESCRIPTOR.full_name
                info.info.value = details.SerializeToString()
        return response

    async def Stats(self, request: Any) -> v3.StatsResponse:
        metrics = cgroups.stats(_cgroup(self._container(request)))
        response = v3.StatsResponse()
        response.stats.type_url = metrics.DESCRIPTOR.full_name
        response.stats.value = metrics.SerializeToString()
        return response

    async def Pause(self, request: Any) -> Empty:
        container = self._container(request)
        await container.pause()
        self._publisher.publish("/tasks/paused", events_pb2.TaskPaused(container_id=container.id))
        return Empty()

    async def Resume(self, request: Any) -> Empty:
        container = self._container(request)
        await container.resume()
        self._publisher.publish("/tasks/resumed", events_pb2.TaskResumed(container_id=container.id))
        return Empty()

    async def Update(self, request: Any) -> Empty:
        await self._container(request).update(request.resources.value)
        return Empty()

    async def ResizePty(self, request: Any) -> Empty:
        process = self._container(request).process(request.exec_id)
        process.stdio.resize(request.width, request.height)
        return Empty()

    async def CloseIO(self, request: Any) -> Empty:
        process = self._container(request).process(request.exec_id)
        if request.stdin:
            process.stdio.close_stdin()
        return Empty()

    async def Reopen(self, request: Any) -> logs_pb2.ReopenResponse:
        """Of the service for log files: goes on in new files of the same names."""
        self._container(request).process(request.exec_id).stdio.reopen_logs()
        return logs_pb2.ReopenResponse()

    async def Checkpoint(self, request: Any) -> Empty:
        container = self._container(request)
        try:
            options = options_pb2.CheckpointOptions.FromString(request.options.value)
        except ValueError as error:
            raise InvalidArgument(f"options: malformed: {error}") from error
        await restore.checkpoint(container, request.path, options)
        self._publisher.publish(
            "/tasks/checkpointed",
            events_pb2.TaskCheckpointed(container_id=container.id, checkpoint=request.path),
        )
        return Empty()

    async def Connect(self, request: Any) -> v3.ConnectResponse:
        if self._refusal is not None:
            raise self._refusal
        container = self._containers.get(request.id)
        return v3.ConnectResponse(
            shim_pid=os.getpid(), task_pid=container.init.pid if container else 0
        )

    async def Shutdown(self, request: Any) -> Empty:
        """Ends the shim once the answer is on its way; not while it holds a container."""
        if self.idle:
            self._shutdown()
        return Empty()

    def _container(self, request: Any) -> Container:
        container = self._containers.get(request.id)
        if container is None:
            raise NotFound("container not created")
        return container


METHODS: Methods = {
    **bind(v3.DESCRIPTOR.services_by_name["Task"], TaskService),
    **bind(v2.DESCRIPTOR.services_by_name["Task"], TaskService),
    **bind(logs_pb2.DESCRIPTOR.services_by_name["Logs"], TaskService),
}
"""Both versions of the service and our own for log files, for ``rpc.Server``."""


def _cgroup(container: Container) -> cgroups.Cgroup:
    if container.cgroup is None:
        raise NotFound("cgroup does not exist")
    return container.cgroup


def _set_time(message: Any, exit: Exit) -> None:
    if exit.at:
        time = message.exited_at
        time.seconds, time.nanos = divmod(exit.at, 1_000_000_000)


def _process_spec(request: Any) -> bytes:
    """The OCI process of an exec, with the terminal that the request asks for.

    Raises InvalidArgument."""
    import json

    try:
        spec = json.loads(request.spec.value)
    except ValueError as error:
        raise InvalidArgument(f"spec: is not JSON: {error}") from error
    except RecursionError as error:
        raise InvalidArgument("spec: must not be nested so deeply") from error
    if not isinstance(spec, dict):
        raise InvalidArgument("spec: must be a JSON object")
    if bool(spec.get("terminal")) == request.terminal:
        return bytes(request.spec.value)
    spec["terminal"] = request.terminal
    try:
        return json.dumps(spec).encode()
    except RecursionError as error:
        raise InvalidArgument("spec: must not be nested so deeply") from error
