"""A connection to one shim, and its task service called in the daemon's own terms.

The messages of task service versions 2 and 3 are the same, only the service's name differs; the
v3 classes serve both. Deadlines here are for shims that do not answer at all: a runtime's own
slowness (create, start, checkpoint) is bounded by the caller and by the life of the shim. Our own
shims give the runtime a deadline. What has no deadline of its own has that of the shim.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos.containerd.task.v3 import shim_pb2 as pb
from protos.containerd.types import types_pb2
from protos.supervisord.shim.v1 import logs_pb2
from supervisord.contracts.snapshots import Mount
from supervisord.contracts.tasks import Exit, Process, ProcessInfo, Status, Stdio
from supervisord.contracts.typed import TypedValue, from_any
from supervisord.ttrpc.client import Client

R = TypeVar("R", bound=Message)

LOGS_SERVICE = "supervisord.shim.v1.Logs"
STATE_SECONDS = 2.0
CALL_SECONDS = 60.0
CONNECT_SECONDS = 5.0
SHUTDOWN_SECONDS = 3.0


class Shim:
    """One shim as the holder of one task."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        id: str,
        version: int,
        seconds: float = CALL_SECONDS,
    ) -> None:
        self.client = client
        self._seconds = seconds
        self.id = id
        self._service = f"containerd.task.v{version}.Task"
        self._metadata = {"containerd-namespace-ttrpc": namespace}

    @property
    def closed(self) -> Awaitable[None]:
        """Done when the connection is lost."""
        return self.client.closed

    @property
    def is_lost(self) -> bool:
        """Whether the connection is lost."""
        return self.client.is_lost

    def close(self) -> None:
        """Ends the connection, not the shim."""
        self.client.close()

    async def _call(self, method: str, request: Message, response: type[R]) -> R:
        return await self._call_for(self._seconds, method, request, response)

    async def _call_for(
        self, seconds: float | None, method: str, request: Message, response: type[R]
    ) -> R:
        return await self.client.call(
            self._service, method, request, response, timeout=seconds, metadata=self._metadata
        )

    # The life of processes ----------------------------------------------------------------

    async def create(
        self,
        bundle: str,
        rootfs: Sequence[Mount],
        stdio: Stdio,
        options: TypedValue,
        checkpoint: str = "",
        seconds: float | None = None,
    ) -> int:
        """The pid of init."""
        request = pb.CreateTaskRequest(
            id=self.id,
            bundle=bundle,
            rootfs=[
                types_pb2.Mount(
                    type=mount.type,
                    source=mount.source,
                    target=mount.target,
                    options=mount.options,
                )
                for mount in rootfs
            ],
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=checkpoint,
        )
        if options:
            request.options.type_url, request.options.value = options.type_url, options.value
        return (await self._call_for(seconds, "Create", request, pb.CreateTaskResponse)).pid

    async def start(self, exec_id: str = "") -> int:
        """The pid of the started process."""
        request = pb.StartRequest(id=self.id, exec_id=exec_id)
        return (await self._call_for(None, "Start", request, pb.StartResponse)).pid

    async def delete(self, exec_id: str = "") -> Exit:
        """Deletes an ended process."""
        request = pb.DeleteRequest(id=self.id, exec_id=exec_id)
        answer = await self._call("Delete", request, pb.DeleteResponse)
        return Exit(exec_id, answer.pid, answer.exit_status, nanoseconds(answer.exited_at))

    async def wait(self, exec_id: str = "") -> Exit:
        """Returns when the process has ended; its pid is not part of the answer (0)."""
        request = pb.WaitRequest(id=self.id, exec_id=exec_id)
        answer = await self._call_for(None, "Wait", request, pb.WaitResponse)
        return Exit(exec_id, 0, answer.exit_status, nanoseconds(answer.exited_at))

    async def exec(self, exec_id: str, stdio: Stdio, spec: TypedValue) -> None:
        """Adds an exec."""
        request = pb.ExecProcessRequest(
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=Any(type_url=spec.type_url, value=spec.value),
        )
        await self._call("Exec", request, Empty)

    async def kill(self, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        """Signals init, an exec, or all processes."""
        request = pb.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=all)
        await self._call("Kill", request, Empty)

    # What it knows ------------------------------------------------------------------------

    async def state(self, exec_id: str = "", seconds: float = STATE_SECONDS) -> Process:
        """The state of a process."""
        request = pb.StateRequest(id=self.id, exec_id=exec_id)
        answer = await self._call_for(seconds, "State", request, pb.StateResponse)
        return Process(
            self.id,
            exec_id,
            answer.pid,
            Status(answer.status),
            Stdio(answer.stdin, answer.stdout, answer.stderr, answer.terminal),
            answer.exit_status,
            nanoseconds(answer.exited_at),
        )

    async def connect(self, seconds: float = CONNECT_SECONDS) -> tuple[int, int]:
        """The pids of the shim and of init (0 where there is none yet)."""
        request = pb.ConnectRequest(id=self.id)
        answer = await self._call_for(seconds, "Connect", request, pb.ConnectResponse)
        return answer.shim_pid, answer.task_pid

    async def pids(self) -> list[ProcessInfo]:
        """All processes of the container."""
        answer = await self._call("Pids", pb.PidsRequest(id=self.id), pb.PidsResponse)
        return [ProcessInfo(found.pid, from_any(found.info)) for found in answer.processes]

    async def stats(self, seconds: float = STATE_SECONDS) -> TypedValue:
        """Statistics, of a type that is the shim's choice."""
        request = pb.StatsRequest(id=self.id)
        answer = await self._call_for(seconds, "Stats", request, pb.StatsResponse)
        return from_any(answer.stats)

    # The rest -----------------------------------------------------------------------------

    async def pause(self) -> None:
        """Freezes all processes."""
        await self._call("Pause", pb.PauseRequest(id=self.id), Empty)

    async def resume(self) -> None:
        """Thaws them."""
        await self._call("Resume", pb.ResumeRequest(id=self.id), Empty)

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        """The size of the terminal."""
        request = pb.ResizePtyRequest(id=self.id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty)

    async def close_io(self, exec_id: str) -> None:
        """Ends the standard input of a process."""
        request = pb.CloseIORequest(id=self.id, exec_id=exec_id, stdin=True)
        await self._call("CloseIO", request, Empty)

    async def reopen_logs(self, exec_id: str) -> None:
        """Lets the shim open its log files anew. Raises Unimplemented where it is not ours."""
        request = logs_pb2.ReopenRequest(id=self.id, exec_id=exec_id)
        await self.client.call(
            LOGS_SERVICE,
            "Reopen",
            request,
            logs_pb2.ReopenResponse,
            timeout=self._seconds,
            metadata=self._metadata,
        )

    async def update(self, resources: TypedValue, annotations: Mapping[str, str]) -> None:
        """Applies resource limits."""
        request = pb.UpdateTaskRequest(id=self.id, annotations=annotations)
        request.resources.type_url, request.resources.value = resources.type_url, resources.value
        await self._call("Update", request, Empty)

    async def checkpoint(self, path: str, options: TypedValue) -> None:
        """Writes a checkpoint of the container into a folder."""
        request = pb.CheckpointTaskRequest(id=self.id, path=path)
        request.options.type_url, request.options.value = options.type_url, options.value
        await self._call_for(None, "Checkpoint", request, Empty)

    async def shutdown(self) -> None:
        """Asks the shim to end, which it does when it holds no container."""
        request = pb.ShutdownRequest(id=self.id)
        await self._call_for(SHUTDOWN_SECONDS, "Shutdown", request, Empty)


def nanoseconds(time: Timestamp) -> int:
    """A protobuf time as nanoseconds since the epoch; containerd's zero time is 0."""
    return max(0, time.seconds * 1_000_000_000 + time.nanos)
