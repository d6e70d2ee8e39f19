"""What the daemon is doing right now, as text: for a log line when somebody asks with SIGUSR1."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import FrameType


def stacks() -> str:
    """The stack of every thread, and of every task of the running loop, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines: list[str] = []
    for ident, frame in sys._current_frames().items():
        lines += [f"thread {names.get(ident, ident)}", *reversed(list(_calls(frame)))]
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        lines += [f"task {task.get_name()}", *map(_call, task.get_stack())]
    return "\n".join(lines)


def _calls(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield _call(frame)
        frame = frame.f_back


def _call(frame: FrameType) -> str:
    # No traceback module: a frame that has not begun has no line, which it cannot print.
    return f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
