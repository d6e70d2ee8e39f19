"""What shims tell in events, as news for the tasks that it is about.

Anybody who may call the daemon can send such an event, and one may be late and tell of an earlier
container of the same name. So an exit is believed only of the pid that init has, and only once that
process is gone; all else merely raises doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from protos.containerd.events import events_pb2
from supervisord.contracts.events import Envelope

from .shim import nanoseconds
from .sight import News
from .task import Task

_EXIT = "/tasks/exit"
_KINDS: dict[str, Any] = {
    _EXIT: events_pb2.TaskExit,
    "/tasks/start": events_pb2.TaskStart,
    "/tasks/paused": events_pb2.TaskPaused,
    "/tasks/resumed": events_pb2.TaskResumed,
    "/tasks/checkpointed": events_pb2.TaskCheckpointed,
}


class Hearing:
    """Listens for all tasks of a manager, by namespace and id."""

    def __init__(self, tasks: Mapping[tuple[str, str], Task]) -> None:
        self._tasks = tasks

    def __call__(self, envelope: Envelope) -> None:
        """One event, before any subscriber gets it. Never raises."""
        kind = _KINDS.get(envelope.topic)
        if kind is None:
            return
        try:
            event = kind.FromString(envelope.event.value)
        except DecodeError:
            return  # whoever sent it, it was no shim
        task = self._tasks.get((envelope.namespace, event.container_id))
        if task is None:
            return
        if isinstance(event, events_pb2.TaskExit):
            _exited(task, event)
        else:
            begun = envelope.topic == "/tasks/start" and event.pid == task.record.init_pid
            task.sight.feed(News.STARTED if begun and task.sight.expects_start else News.DOUBT)


def _exited(task: Task, event: events_pb2.TaskExit) -> None:
    if event.pid != task.record.init_pid:
        return  # an exec, or an earlier container
    if task.init_is_alive():
        task.sight.feed(News.DOUBT)
    else:
        task.sight.ended(event.exit_status, nanoseconds(event.exited_at))
