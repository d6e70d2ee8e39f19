"""The zygote: a small warm interpreter that forks workers on request.

``python -m shims.zygote FD KIND [spare] [merged]`` reads requests from the SOCK_SEQPACKET socket
FD: JSON with ``seq`` and ``arguments``, and the worker's descriptors attached. The worker answers
JSON with ``seq`` and ``pid``; the zygote, where there is none, with ``error``, or ``lost`` where
one ended before it had taken its request. A worker belongs to init, because it is forked twice, and
shares the zygote's memory until it writes to it: so everything is imported before the first fork
and frozen out of the garbage collector's sight. Each kind has a zygote of its own, so that none
carries what another needs. With ``merged`` what workers write is offered to the kernel for merging.
It ends when its socket closes; the workers live on.
"""

# Paths stay strings: every shim would pay for pathlib with memory of its own.
from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import sys
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
from collections.abc import Callable, Sequence

from . import log
from .lean import StandIns

TYPE_CHECKING = False
if TYPE_CHECKING:  # not at run time, where it is memory of every worker
    from typing import Any

    Worker = Callable[..., None]
    Begin = Callable[[], Any]
    Finish = Callable[[], None]

# The parser below json.loads: the Python code above it would be paid for in every worker.
_parse = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

_MAX_REQUEST = 128 << 10
_MAX_FDS = 16
_ROOM = CMSG_SPACE(_MAX_FDS * 4)
_LAST_FD = (1 << 31) - 1
_IDLE_MS = 100
_REPLENISH = b"replenish"
_MOST_UNCHECKED = 64
_SPARE = "spare"
_MERGED = "merged"
_WORD = b"."


def load(kind: str) -> tuple[Worker, Begin | None, Finish]:
    """Imports all that a kind of worker needs. Answers its main function, which takes arguments and
    descriptors; what a spare of it does ahead, of which ``main`` gets the result as well; and what
    is left to do right before the first fork. Raises ImportError."""
    if kind == "shim":
        with StandIns():
            from . import preload, worker

        worker.settle()
        preload.warm()
        return worker.main, worker.begin, preload.fill_holes
    from .unpack import worker as unpack

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return unpack.main, None, _nothing


def serve(
    sock: socket,
    kind: str,
    worker: Worker,
    begin: Begin | None = None,
    *,
    spares: bool = False,
) -> None:
    """Makes a worker for each request until the socket closes. With ``spares`` one is there
    already, ready to become a worker, so that a worker costs a message; the next is made when the
    daemon says so or no request has come for a moment: it would compete with the one that just
    begins."""
    spare: socket | None = None
    begun: list[tuple[socket, bytes]] = []  # requests that are to become workers, not checked yet
    slow: dict[int, tuple[socket, bytes]] = {}  # those that took longer, by descriptor
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    while True:
        wants_spare = spares and spare is None
        ready = [fd for fd, _ in poll.poll(_IDLE_MS if begun or wants_spare else None)]
        for fd in ready:
            if fd in slow:
                poll.unregister(fd)
                _is_settled(sock, *slow.pop(fd))
        is_quiet = sock.fileno() not in ready
        if is_quiet or len(begun) > _MOST_UNCHECKED:
            for one in begun:
                if not _is_settled(sock, *one):
                    slow[one[0].fileno()] = one
                    poll.register(one[0].fileno(), select.POLLIN)
            begun.clear()
        if is_quiet:
            if wants_spare and not ready:
                spare = _make_spare(sock, kind, worker, begin)
            continue
        # Like socket.recv_fds, but what this process touches is lost to the worker before.
        data, ancillary, _, _ = sock.recvmsg(_MAX_REQUEST, _ROOM, MSG_CMSG_CLOEXEC)
        if not data:
            return
        if data == _REPLENISH:
            if spare is None and spares:
                spare = _make_spare(sock, kind, worker, begin)
            continue
        fds = array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        if spare is None or not _hand_over(spare, data, fds):
            spare = _fork(sock, kind, worker, data, fds.tolist())
        if spare is not None:
            begun.append((spare, data))
            spare = None
        for fd in fds:
            os.close(fd)


def _fork(sock: socket, kind: str, worker: Worker, data: bytes, fds: list[int]) -> socket | None:
    """A worker for a request, and the socket over which it says its word."""
    try:
        end, is_worker = _worker()
    except OSError as error:
        _answer(sock, json.loads(data)["seq"], error=f"fork: {error.strerror}")
        return None
    if not is_worker:
        return end
    status = 1
    try:
        request = _accept(sock, end, data)
        _settle(kind, fds)
        worker(request["arguments"], fds)
        status = 0
    except BaseException as error:
        log.error("worker failed", kind=kind, error=repr(error))
        raise
    finally:
        os._exit(status)


def _is_worker() -> bool:
    """Forks twice: True in the new process, which is not our child. Raises OSError."""
    middle = os.fork()
    if middle:
        if os.waitpid(middle, 0)[1]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return False
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    return True


def _worker() -> tuple[socket, bool]:
    """Forks a worker: answers the two ends of a socket between the zygote and it, and True in the
    worker. Raises OSError."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        is_worker = _is_worker()
    except OSError:
        ours.close()
        theirs.close()
        raise
    (ours if is_worker else theirs).close()
    return (theirs, True) if is_worker else (ours, False)


def _accept(sock: socket, end: socket, data: bytes) -> dict[str, Any]:
    """The request that this process is going to serve. The answer to it comes from the worker
    itself: once it is there, it is there for good. Then the zygote gets its word."""
    request, _ = _parse(data.decode(), 0)
    os.write(sock.fileno(), b'{"seq": %d, "pid": %d}' % (request["seq"], os.getpid()))
    try:
        end.send(_WORD)
    except OSError as error:
        log.debug("the zygote has gone", error=error)
    return request  # type: ignore[no-any-return]


def _hand_over(spare: socket, data: bytes, fds: array[int]) -> bool:
    """Whether the spare is there to take the request."""
    try:
        spare.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, fds)] if fds else [])
    except OSError as error:
        log.warning("the spare is gone", error=error)
        return False
    return True


def _is_settled(sock: socket, end: socket, data: bytes) -> bool:
    """Whether a worker has taken its request, or has ended before it could, which is told. It
    says a word after it has answered."""
    try:
        word = end.recv(1, MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        word = b""
    end.close()
    if not word:
        log.warning("a worker ended before it had taken its request")
        _answer(sock, json.loads(data)["seq"], lost=1)
    return True


def _make_spare(sock: socket, kind: str, worker: Worker, begin: Begin | None) -> socket | None:
    """A worker without a request, and the socket over which it gets one; it ends when that
    closes. None where there cannot be one now."""
    try:
        end, is_worker = _worker()
    except OSError as error:
        log.warning("no spare", error=error)
        return None
    if not is_worker:
        return end
    status = 1
    try:
        _settle(_SPARE, (sock.fileno(), end.fileno()))
        begun = begin() if begin is not None else None
        data, ancillary, _, _ = end.recvmsg(_MAX_REQUEST, _ROOM, MSG_CMSG_CLOEXEC)
        if data:
            fds = array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            request = _accept(sock, end, data)
            sock.close()
            end.close()
            _name(kind)
            worker(request["arguments"], fds.tolist(), begun)
        status = 0
    except BaseException as error:
        log.error("worker failed", kind=kind, error=repr(error))
        raise
    finally:
        os._exit(status)


def _answer(sock: socket, seq: int, **answer: int | str) -> None:
    sock.send(json.dumps({"seq": seq, **answer}).encode())


def _settle(kind: str, fds: Sequence[int]) -> None:
    """Makes a fork a process in its own right: session, descriptors, name."""
    os.setsid()
    first = 3
    for fd in sorted(fds):
        if fd > first:
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _LAST_FD)
    _name(kind)
    gc.enable()


def _name(kind: str) -> None:
    _write("/proc/self/comm", f"supervisord-{kind}"[:15].encode())


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def adjust_oom_score() -> None:
    """One step more likely to be killed than the daemon, as containerd has it; for this process and
    all that it forks."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        try:
            score = int(os.read(fd, 16))
            if score < 1000:
                os.pwrite(fd, b"%d" % (score + 1), 0)
        finally:
            os.close(fd)
    except OSError as error:
        log.warning("oom_score_adj not set", error=error)


def _offer_memory() -> None:
    """Most of what a worker writes are counts that end as they began, or as those of its siblings
    do: the kernel can keep it once, where it is told to."""
    from supervisord.linux import merging

    try:
        merging.offer()
    except OSError as error:
        log.info("memory not offered for merging", error=error)


def _look_up(*functions: Any) -> None:
    """Asks a module for all names in these functions, which the zygote itself never calls to their
    ends. The interpreter remembers that modules have no such method, and each worker would
    otherwise find that out and note it in memory of its own."""
    for function in functions:
        for name in function.__code__.co_names:
            getattr(os, name, None)


def _nothing() -> None:
    """Where there is nothing left to do."""


def _no_hooks(**_: object) -> None:
    """In place of ``os.register_at_fork``."""


def main() -> None:
    """The program."""
    fd, kind = int(sys.argv[1]), sys.argv[2]
    os.chdir("/")
    os.umask(0o022)
    # Hooks of modules are for programs with threads, of which there is none here, ever; running
    # them would make a third of a MiB of every worker's memory its own.
    os.register_at_fork = _no_hooks
    _write("/proc/self/comm", b"supervisord-zyg")
    worker, begin, finish = load(kind)
    adjust_oom_score()
    sock = socket(fileno=fd)
    os.set_inheritable(fd, False)
    _look_up(_settle, _name, _write, _accept, _is_worker, _make_spare, *filter(None, (begin,)))
    gc.collect()
    gc.disable()
    finish()
    if _MERGED in sys.argv[3:]:
        _offer_memory()
    try:
        _answer(sock, 0, pid=os.getpid())
    except BrokenPipeError:
        return  # the daemon stopped while we started
    finish()  # what that has left
    gc.freeze()
    serve(sock, kind, worker, begin, spares=_SPARE in sys.argv[3:])


if __name__ == "__main__":
    main()
