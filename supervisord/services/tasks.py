"""containerd.services.tasks.v1: the running processes of containers."""

from __future__ import annotations

from protos.containerd.services.tasks.v1 import tasks_pb2 as pb
from protos.containerd.types import types_pb2
from protos.containerd.v1.types import task_pb2
from supervisord.contracts.errors import InvalidArgument
from supervisord.contracts.tasks import CreateTask, Exit, Process, Stdio, TaskManager
from supervisord.contracts.typed import from_any

from .call import Call
from .wire import from_descriptor, from_mounts, timestamp, to_any, to_descriptor


def _process(process: Process) -> task_pb2.Process:
    """A task has its container's id, an exec its own, as containerd's clients know them."""
    return task_pb2.Process(
        id=process.exec_id or process.container_id,
        pid=process.pid,
        status=task_pb2.Status.ValueType(int(process.status)),
        stdin=process.stdio.stdin,
        stdout=process.stdio.stdout,
        stderr=process.stdio.stderr,
        terminal=process.stdio.terminal,
        exit_status=process.exit_status,
        exited_at=timestamp(process.exited_at),
    )


def _deleted(exit: Exit) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=exit.exec_id,
        pid=exit.pid,
        exit_status=exit.exit_status,
        exited_at=timestamp(exit.exited_at),
    )


class TasksService:
    """Hands each request to the task manager."""

    def __init__(self, manager: TaskManager) -> None:
        self._manager = manager

    async def create(self, call: Call, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        task = CreateTask(
            container_id=request.container_id,
            rootfs=from_mounts(request.rootfs),
            stdio=Stdio(request.stdin, request.stdout, request.stderr, request.terminal),
            checkpoint=(
                from_descriptor(request.checkpoint) if request.HasField("checkpoint") else None
            ),
            options=from_any(request.options),
            runtime_path=request.runtime_path,
        )
        pid = await self._manager.create(call.namespace, task)
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def start(self, call: Call, request: pb.StartRequest) -> pb.StartResponse:
        pid = await self._manager.start(call.namespace, request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def delete(self, call: Call, request: pb.DeleteTaskRequest) -> pb.DeleteResponse:
        return _deleted(await self._manager.delete(call.namespace, request.container_id))

    async def delete_process(
        self, call: Call, request: pb.DeleteProcessRequest
    ) -> pb.DeleteResponse:
        ended = await self._manager.delete_process(
            call.namespace, request.container_id, request.exec_id
        )
        return _deleted(ended)

    async def get(self, call: Call, request: pb.GetRequest) -> pb.GetResponse:
        process = await self._manager.get(call.namespace, request.container_id, request.exec_id)
        return pb.GetResponse(process=_process(process))

    async def list(self, call: Call, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        tasks = await self._manager.list(call.namespace)
        return pb.ListTasksResponse(tasks=[_process(task) for task in tasks])

    async def kill(self, call: Call, request: pb.KillRequest) -> None:
        await self._manager.kill(
            call.namespace,
            request.container_id,
            request.signal,
            exec_id=request.exec_id,
            all=request.all,
        )

    async def exec(self, call: Call, request: pb.ExecProcessRequest) -> None:
        if not request.exec_id:
            raise InvalidArgument("exec_id: exec id cannot be empty")
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        await self._manager.exec(
            call.namespace, request.container_id, request.exec_id, stdio, from_any(request.spec)
        )

    async def resize_pty(self, call: Call, request: pb.ResizePtyRequest) -> None:
        await self._manager.resize(
            call.namespace, request.container_id, request.exec_id, request.width, request.height
        )

    async def close_io(self, call: Call, request: pb.CloseIORequest) -> None:
        await self._manager.close_io(
            call.namespace, request.container_id, request.exec_id, stdin=request.stdin
        )

    async def pause(self, call: Call, request: pb.PauseTaskRequest) -> None:
        await self._manager.pause(call.namespace, request.container_id)

    async def resume(self, call: Call, request: pb.ResumeTaskRequest) -> None:
        await self._manager.resume(call.namespace, request.container_id)

    async def list_pids(self, call: Call, request: pb.ListPidsRequest) -> pb.ListPidsResponse:
        processes = await self._manager.pids(call.namespace, request.container_id)
        return pb.ListPidsResponse(
            processes=[
                task_pb2.ProcessInfo(pid=process.pid, info=to_any(process.info))
                for process in processes
            ]
        )

    async def checkpoint(
        self, call: Call, request: pb.CheckpointTaskRequest
    ) -> pb.CheckpointTaskResponse:
        written = await self._manager.checkpoint(
            call.scope,
            request.container_id,
            request.parent_checkpoint,
            from_any(request.options),
        )
        return pb.CheckpointTaskResponse(descriptors=[to_descriptor(d) for d in written])

    async def update(self, call: Call, request: pb.UpdateTaskRequest) -> None:
        await self._manager.update(
            call.namespace,
            request.container_id,
            from_any(request.resources),
            dict(request.annotations),
        )

    async def metrics(self, call: Call, request: pb.MetricsRequest) -> pb.MetricsResponse:
        metrics = await self._manager.metrics(call.namespace, tuple(request.filters))
        return pb.MetricsResponse(
            metrics=[
                types_pb2.Metric(
                    id=metric.container_id,
                    timestamp=timestamp(metric.timestamp),
                    data=to_any(metric.data),
                )
                for metric in metrics
            ]
        )

    async def wait(self, call: Call, request: pb.WaitRequest) -> pb.WaitResponse:
        ended = await self._manager.wait(call.namespace, request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=ended.exit_status, exited_at=timestamp(ended.exited_at))
