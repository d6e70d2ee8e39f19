"""The daemon's end of the zygotes: starts them, asks them for workers, replaces dead ones.

There is one zygote for each kind of worker (``python -m shims.zygote``), started with its first
request. Requests are pipelined: any number may wait for their answers at a time. A worker answers
for itself, so a request without an answer when the socket ends has made no worker, and is sent
again, once, to a new zygote; so is one whose worker died before it answered. Workers are not our
children and need no reaping; a zygote is, and is waited for when its socket ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import supervisord
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import InvalidArgument, Unavailable
from supervisord.linux import executable

log = logging.getLogger(__name__)

KINDS = ("shim", "unpack")

_MAX_REQUEST = 96 << 10
_MAX_ANSWER = 4096
_SECONDS = 15.0
_END_SECONDS = 5.0
_REPLENISH = b"replenish"


class Zygote:
    """Implements contracts.workers.ShimSpawner."""

    def __init__(
        self,
        *,
        python: str = sys.executable,
        seconds: float = _SECONDS,
        spares: bool = False,
        merged: bool = False,
    ) -> None:
        """``seconds`` is the deadline of a spawn, a restart included. With ``spares`` a fork
        waits to become the next shim, so there is always one process more. With ``merged`` the
        kernel may merge same pages of shims, see linux/merging.py."""
        self._spares = spares
        self._merged = merged
        self._python = python
        self._seconds = seconds
        self._owner = TaskOwner("zygote")
        self._families: dict[str, _Family] = {}
        self._locks = {kind: asyncio.Lock() for kind in KINDS}
        self._closed = False

    async def start(self, kind: str = "shim") -> int:
        """Starts a zygote ahead of its first request and answers its pid. Raises Unavailable."""
        try:
            async with asyncio.timeout(self._seconds):
                family = await self._family(kind)
                await asyncio.shield(family.ready)
        except (_Lost, TimeoutError) as error:
            raise Unavailable(f"zygote: the one for {kind} workers does not start") from error
        return family.pid

    async def spawn(
        self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()
    ) -> int:
        """See the contract. Raises Unavailable, InvalidArgument (an unknown kind)."""
        try:
            async with asyncio.timeout(self._seconds):
                try:
                    return await (await self._family(kind)).request(arguments, fds)
                except _Lost:
                    log.warning("the %s zygote or its spare died, asking again", kind)
                    return await (await self._family(kind)).request(arguments, fds)
        except _Lost as error:
            raise Unavailable(f"zygote: {error}") from error
        except TimeoutError:
            stuck = self._families.pop(kind, None)
            if stuck is not None:
                stuck.end(kill=True)
            raise Unavailable(f"zygote: no {kind} worker in {self._seconds:g} s") from None

    def replenish(self, kind: str) -> None:
        """See the contract. A zygote that has no time for it just now makes a spare later."""
        family = self._families.get(kind)
        if self._spares and family is not None:
            family.replenish()

    async def close(self) -> None:
        """Ends the zygotes; their workers live on."""
        self._closed = True
        families = list(self._families.values())
        self._families.clear()
        for family in families:
            family.end()
        await self._owner.close(grace=_END_SECONDS)

    async def _family(self, kind: str) -> _Family:
        if kind not in self._locks:
            raise InvalidArgument(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
        async with self._locks[kind]:
            if self._closed:
                raise Unavailable("zygote: is closed")
            family = self._families.get(kind)
            if family is None or family.lost:
                try:
                    family = await _Family.start(self._python, kind, self._owner, self._words(kind))
                except OSError as error:
                    raise Unavailable(f"zygote: {self._python}: {error.strerror}") from error
                self._families[kind] = family
            return family

    def _words(self, kind: str) -> list[str]:
        """What the zygote is told beyond its kind: ways of shims, which stay."""
        if kind != "shim":
            return []
        return ["spare"] * self._spares + ["merged"] * self._merged


class _Lost(Exception):
    """The zygote ended before it had answered."""


class _Family:
    """One running zygote and the requests that wait for it."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.lost = False
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[int] = loop.create_future()
        self.ready.add_done_callback(_heard)
        self._loop = loop
        self._socket = sock
        self._process = process
        self._waiting: dict[int, asyncio.Future[int]] = {0: self.ready}
        self._last = 0
        self._sending = asyncio.Lock()
        loop.add_reader(sock.fileno(), self._receive)

    @classmethod
    async def start(cls, python: str, kind: str, owner: TaskOwner, words: Sequence[str]) -> _Family:
        """Starts a zygote; it answers when it is warm. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.to_thread(_launch, python, kind, theirs.fileno(), words)
        except BaseException:
            ours.close()
            raise
        family = cls(ours, process)
        owner.spawn(family.reap(), f"{kind} zygote")
        return family

    @property
    def pid(self) -> int:
        return self._process.pid

    async def request(self, arguments: Mapping[str, object], fds: Sequence[int]) -> int:
        """Asks for a worker and answers its pid. Raises _Lost, Unavailable, InvalidArgument."""
        if self.lost:
            raise _Lost("it is not running")
        self._last += 1
        seq = self._last
        data = json.dumps({"seq": seq, "arguments": dict(arguments)}).encode()
        if len(data) > _MAX_REQUEST:
            raise InvalidArgument(f"arguments: more than {_MAX_REQUEST} bytes")
        answer: asyncio.Future[int] = self._loop.create_future()
        answer.add_done_callback(_heard)
        self._waiting[seq] = answer
        try:
            await self._send(data, fds)
            return await answer
        finally:
            self._waiting.pop(seq, None)

    def replenish(self) -> None:
        """Asks for a spare, unless it is too busy to be asked."""
        with contextlib.suppress(OSError):
            self._socket.send(_REPLENISH)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        async with self._sending:
            while not self.lost:
                try:
                    socket.send_fds(self._socket, [data], fds)
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    self._end_of_stream()
                    raise _Lost(str(error.strerror)) from error
        raise _Lost("it ended")

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._socket.fileno()
        self._loop.add_writer(fd, _resolve, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(fd)

    def _receive(self) -> None:
        while not self.lost:
            try:
                data = self._socket.recv(_MAX_ANSWER)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end_of_stream()
                return
            message = json.loads(data)
            answer = self._waiting.get(message["seq"])
            if answer is None or answer.done():
                if "lost" in message:  # it had answered, in its last moment
                    continue
                log.warning("a worker came too late: %s", message)
            elif "lost" in message:
                answer.set_exception(_Lost("the worker ended before it answered"))
            elif "pid" in message:
                answer.set_result(message["pid"])
            else:
                answer.set_exception(Unavailable(f"zygote: {message.get('error')}"))

    def _end_of_stream(self) -> None:
        self.end()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_Lost("it ended"))

    def end(self, *, kill: bool = False) -> None:
        """Ends the zygote by closing its socket, or by force."""
        if kill:
            self._process.kill()
        if not self.lost:
            self.lost = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    async def reap(self) -> None:
        """Waits for the zygote's end, whenever it comes; a thread is not spent on that."""
        pidfd = os.pidfd_open(self.pid)
        ended: asyncio.Future[None] = self._loop.create_future()
        try:
            self._loop.add_reader(pidfd, _resolve, ended)
            await ended
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _heard(future: asyncio.Future[int]) -> None:
    """A failure counts as heard even if the one who asked has failed by other means."""
    if not future.cancelled():
        future.exception()


def _launch(python: str, kind: str, fd: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts the program with our own import path, and without the site module, whose hooks cost
    memory in every worker."""
    root = str(Path(supervisord.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    # Without bytecode files everything would be compiled at each start, and what the compiler
    # leaves in the heap would be in every worker.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # What the linker finds out late, each worker would write to pages of its own.
    environment["LD_BIND_NOW"] = "1"
    command = [python, "-S", "-s", "-P", "-m", "shims.zygote", str(fd), kind, *words]
    program = _protected(python) if kind == "shim" else -1
    try:
        return subprocess.Popen(
            command,
            executable=python if program < 0 else f"/proc/{os.getpid()}/fd/{program}",
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    finally:
        if program >= 0:
            os.close(program)


def _protected(python: str) -> int:
    """The interpreter as shims need it to enter containers themselves; -1 where that cannot be
    had, and execs are all left to the runtime."""
    try:
        return executable.read_only(shutil.which(python) or python)
    except OSError as error:
        log.info("execs start the runtime: %s cannot be protected: %s", python, error)
        return -1
