"""The zygote: a small warm interpreter that forks workers on request.

``python -m shims.zygote FD KIND`` reads requests from the SOCK_SEQPACKET socket FD: JSON with
``seq`` and ``arguments``, and the worker's descriptors attached. It answers JSON with ``seq`` and
``pid``, or ``error``. A worker belongs to init, because it is forked twice, and shares the zygote's
memory until it writes to it: so everything is imported before the first fork and frozen out of the
garbage collector's sight. Each kind has a zygote of its own, so that none carries what another
needs. It ends when its socket closes; the workers live on.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from supervisord.linux import process as process_calls

from . import log

Worker = Callable[[Mapping[str, Any], Sequence[int]], None]

_MAX_REQUEST = 128 << 10
_MAX_FDS = 16


def load(kind: str) -> Worker:
    """Imports all that a kind of worker needs. Raises ImportError."""
    if kind == "shim":
        from . import preload, worker

        preload.warm()
        return worker.main
    from .unpack import worker as unpack

    main: Worker = unpack.main
    return main


def serve(sock: socket.socket, kind: str, worker: Worker) -> None:
    """Forks a worker for each request until the socket closes."""
    while True:
        data, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        _fork(sock, kind, worker, data, fds)
        for fd in fds:
            os.close(fd)


def _fork(sock: socket.socket, kind: str, worker: Worker, data: bytes, fds: list[int]) -> None:
    try:
        middle = os.fork()
    except OSError as error:
        _answer(sock, json.loads(data)["seq"], error=f"fork: {error.strerror}")
        return
    if middle:
        os.waitpid(middle, 0)
        return
    request = json.loads(data)
    try:
        if os.fork():
            os._exit(0)
    except OSError as error:
        _answer(sock, request["seq"], error=f"fork: {error.strerror}")
        os._exit(1)
    status = 1
    try:
        # The answer comes from the worker itself: once it is there, it is there for good.
        _answer(sock, request["seq"], pid=os.getpid())
        _settle(kind, fds)
        worker(request["arguments"], fds)
        status = 0
    except BaseException as error:
        log.error("worker failed", kind=kind, error=repr(error))
        raise
    finally:
        os._exit(status)


def _answer(sock: socket.socket, seq: int, **answer: int | str) -> None:
    sock.send(json.dumps({"seq": seq, **answer}).encode())


def _settle(kind: str, fds: Sequence[int]) -> None:
    """Makes a fork a process in its own right: session, folder, signals, descriptors, name."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    first = 3
    for fd in sorted(fds):
        if fd > first:
            process_calls.close_range(first, fd - 1)
        first = fd + 1
    process_calls.close_range(first)
    process_calls.set_name(f"supervisord-{kind}"[:15])
    _adjust_oom_score()
    gc.enable()


def _adjust_oom_score() -> None:
    """One step more likely to be killed than the daemon, as containerd has it."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = int(file.read())
            if score < 1000:
                file.seek(0)
                file.write(str(score + 1))
    except (OSError, ValueError) as error:
        log.warning("oom_score_adj not set", error=error)


def main() -> None:
    """The program."""
    fd, kind = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, meant for the daemon
    os.chdir("/")
    process_calls.set_name("supervisord-zyg")
    worker = load(kind)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    gc.collect()
    gc.freeze()
    gc.disable()
    _answer(sock, 0, pid=os.getpid())
    serve(sock, kind, worker)


if __name__ == "__main__":
    main()
