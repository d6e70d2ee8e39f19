"""Runs work in a fork of the shim, so that the memory that the work touches goes with it.

A shim spends its life waiting; what it needs for a moment, to create a container or to delete
one, would stay its own for good. The fork has a loop and a reaper of its own, and ends with its
work. Processes that it leaves behind, such as a container's init, become the shim's children.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine
from typing import Any

from supervisord.contracts.errors import Error, Internal, Unknown, from_code

from . import log
from .command import finish
from .loop import Loop
from .reaper import Reaper

Work = Callable[[Loop, Reaper], Coroutine[Any, Any, Any]]

_MAX_ANSWER = 60 << 10  # what a pipe takes without a reader
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


async def apart(loop: Loop, reaper: Reaper, work: Work, seconds: float, what: str) -> Any:
    """The result of ``work``, which must be plain JSON.

    Raises what the work raises, DeadlineExceeded, Unknown (the fork ended without an answer)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _run(work, write)
        os.close(write)
        write = -1
        exit = await finish(loop, reaper, pid, seconds, what)
        data = os.read(read, _MAX_ANSWER)
    except OSError as error:
        raise Unknown(f"{what}: {error.strerror}") from error
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    if not data:
        raise Unknown(f"{what}: the helper process ended with status {exit.status}")
    answer, _ = _parse(data.decode(), 0)
    if "code" in answer:
        raise from_code(answer["code"], answer["message"])
    return answer["value"]


def _run(work: Work, write: int) -> None:
    """The fork's life; does not return."""
    try:
        loop = Loop()
        reaper = Reaper(loop)
        try:
            answer = {"value": loop.run_until(loop.spawn(work(loop, reaper), "apart"))}
        except Error as error:
            answer = {"code": error.code, "message": error.message}
        except Exception as error:
            log.error("helper process failed", error=repr(error))
            answer = {"code": Internal.code, "message": f"{type(error).__name__}: {error}"}
        data = json.dumps(answer).encode()
        if len(data) > _MAX_ANSWER:
            message = str(answer.get("message", ""))[: _MAX_ANSWER // 8]
            data = json.dumps({"code": Unknown.code, "message": message}).encode()
        os.write(write, data)
    finally:
        os._exit(0)
