"""A fork that is made before it is needed, for the first container that its shim creates.

What ``apart`` forks for takes a while to begin: the fork itself, and the pages that it is first to
write to. A spare has the time for both. Its fork waits at a socket for an order: JSON in one line,
a task's CreateTaskRequest behind it, and descriptors. It serves one, and ends with it, with its
shim, or when the shim lets go of it.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import json
import os
import signal
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from supervisord.contracts.errors import DeadlineExceeded
from supervisord.linux.process import set_parent_death_signal

from . import log
from .apart import line, linger, outcome, value
from .loop import Loop
from .reaper import Reaper

Serve = Callable[[Loop, Reaper, Any, bytes, Sequence[int]], Coroutine[Any, Any, Any]]
"""Carries out an order: its JSON, what came behind it, and the descriptors."""

_LARGEST = 96 << 10
_MAX_FDS = 8
_ROOM = CMSG_SPACE(_MAX_FDS * 4)
_LAST_FD = (1 << 31) - 1
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Ahead:
    """The shim's end of a waiting fork."""

    def __init__(self, pid: int, sock: socket) -> None:
        self.pid = pid
        self._socket: socket | None = sock

    def let_go(self) -> None:
        """It is not needed; it ends."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def order(self, head: str, body: bytes, fds: Sequence[int]) -> bool:
        """Whether it has taken an order. If not, it is of no use any more."""
        data = b"%b\n%b" % (head.encode(), body)
        if self._socket is None or len(data) > _LARGEST:
            return False
        try:
            ancillary = [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))]
            self._socket.sendmsg([data], ancillary, MSG_DONTWAIT)
        except OSError as error:
            log.warning("the fork made ahead is gone", error=error)
            self.let_go()
            return False
        return True

    async def result(self, loop: Loop, seconds: float, what: str) -> Any:
        """What came of the order. Raises what ``apart.apart`` raises."""
        sock, self._socket = self._socket, None
        assert sock is not None  # noqa: S101 - narrows the type
        try:
            return value(await line(loop, sock.fileno(), seconds, what), what)
        except DeadlineExceeded:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            sock.close()


def make(serve: Serve) -> Ahead | None:
    """Forks. None where that cannot be done now."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        shim = os.getpid()
        pid = os.fork()
    except OSError as error:
        log.warning("no fork ahead", error=error)
        ours.close()
        theirs.close()
        return None
    if pid == 0:
        _run(serve, theirs, shim)
    theirs.close()
    return Ahead(pid, ours)


def _run(serve: Serve, sock: socket, shim: int) -> None:
    """The fork's life; does not return."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != shim:
            return
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, _LAST_FD)
        loop = Loop()
        reaper = Reaper(loop)
        data, ancillary, _, _ = sock.recvmsg(_LARGEST, _ROOM, MSG_CMSG_CLOEXEC)
        if data:
            fds = array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            head, _, body = data.partition(b"\n")
            order, _ = _parse(head.decode(), 0)
            sock.send(
                outcome(loop, reaper, lambda loop, reaper: serve(loop, reaper, order, body, fds))
            )
            linger()
    finally:
        os._exit(0)
