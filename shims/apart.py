"""Runs work in a fork of the shim, so that the memory that the work touches goes with it.

A shim spends its life waiting; what it needs for a moment, to create a container, would stay its
own for good. The fork has a loop and a reaper of its own, and ends with its
work. Processes that it leaves behind, such as a container's init, become the shim's children.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from supervisord.contracts.errors import DeadlineExceeded, Error, Internal, Unknown, from_code
from supervisord.linux.process import set_parent_death_signal

from . import log
from .loop import Loop
from .reaper import Reaper

Work = Callable[[Loop, Reaper], Coroutine[Any, Any, Any]]

MAX_ANSWER = 60 << 10
"""What a pipe takes without a reader."""
_LAST_FD = (1 << 31) - 1
_LINGER_SECONDS = 0.005
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


async def apart(loop: Loop, reaper: Reaper, work: Work, seconds: float, what: str) -> Any:
    """The result of ``work``, which must be plain JSON.

    Raises what the work raises, DeadlineExceeded, Unknown (the fork ended without an answer)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            shim = os.getpid()
            pid = os.fork()
            if pid == 0:
                _run(work, write, shim)
        finally:
            os.close(write)
        data = await line(loop, read, seconds, what)
    except DeadlineExceeded:
        os.kill(pid, signal.SIGKILL)
        raise
    except OSError as error:
        raise Unknown(f"{what}: {error.strerror}") from error
    finally:
        os.close(read)
    return value(data, what)


def value(data: bytes, what: str) -> Any:
    """The result in a fork's answer. Raises what its work has raised, Unknown."""
    if not data:
        raise Unknown(f"{what}: the helper process ended without an answer")
    answer, _ = _parse(data.decode(), 0)
    if "code" in answer:
        raise from_code(answer["code"], answer["message"])
    return answer["value"]


async def line(loop: Loop, fd: int, seconds: float, what: str) -> bytes:
    """All up to the end of a line, or nothing. The fork's own end is not waited for: the reaper
    collects it."""
    data = b""
    while not data.endswith(b"\n"):
        await loop.readable(fd, seconds, what)
        part = os.read(fd, MAX_ANSWER)
        if not part:
            return b""
        data += part
    return data


def _run(work: Work, write: int, shim: int) -> None:
    """The fork's life; does not return. It ends with the shim, whose sockets it holds too: else
    nobody would see that the shim is gone."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != shim:
            return
        loop = Loop()
        os.write(write, outcome(loop, Reaper(loop), work))
        linger()
    finally:
        os._exit(0)


def outcome(loop: Loop, reaper: Reaper, work: Work) -> bytes:
    """Does the work, and answers what the shim is told: a line for ``value``."""
    try:
        answer = {"value": loop.run_until(loop.spawn(work(loop, reaper), "apart"))}
    except Error as error:
        answer = {"code": error.code, "message": error.message}
    except Exception as error:
        log.error("helper process failed", error=repr(error))
        answer = {"code": Internal.code, "message": f"{type(error).__name__}: {error}"}
    data = json.dumps(answer).encode() + b"\n"
    if len(data) > MAX_ANSWER:
        message = str(answer.get("message", ""))[: MAX_ANSWER // 8]
        data = json.dumps({"code": Unknown.code, "message": message}).encode() + b"\n"
    return data


def close_apart(fd: int) -> None:
    """Closes a descriptor, of which that may take long, in a fork that does nothing else."""
    try:
        pid = os.fork()
    except OSError as error:
        log.debug("no fork to close in", error=error)
        os.close(fd)
        return
    if pid:
        os.close(fd)
        return
    try:
        os.closerange(0, fd)
        os.closerange(fd + 1, _LAST_FD)
    finally:
        os._exit(0)  # closes it


def linger() -> None:
    """Lets the shim go on first: it was woken on this processor, and to take a process down
    takes it as long as the rest of its work. Nothing of the container's is held meanwhile."""
    os.closerange(0, _LAST_FD)
    time.sleep(_LINGER_SECONDS)
