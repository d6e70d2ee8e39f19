"""Starts shims of other makers, the way containerd does.

``BINARY -namespace NS -address GRPC -publish-binary P -id ID start`` runs in the bundle, is told
the rest by its environment and standard input, and prints where it listens (see ``bootstrap``).
``... -bundle PATH delete`` cleans up after a shim, dead or not, and prints a DeleteResponse. A shim
writes its log to the FIFO ``log`` in the bundle, and finds a folder ``work`` there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from supervisord.aio import command
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, NotFound, Unimplemented, Unknown
from supervisord.contracts.typed import TypedValue
from supervisord.linux import fifo, process
from supervisord.ttrpc.client import Client

from . import bootstrap
from .bundle import Bundle, ShimRecord
from .launch import Settings, connect
from .shim import Shim

log = logging.getLogger(__name__)

_END_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_OLDEST = 2


def publisher() -> str:
    """The program that shims call to publish an event: this daemon's, as it was called or as it
    was installed; "" if there is none."""
    called = Path(sys.argv[0]).absolute()
    if called.is_file() and os.access(called, os.X_OK):
        return str(called)
    installed = Path(sys.executable).with_name("supervisord")
    return str(installed) if installed.is_file() else shutil.which("supervisord") or ""


class ForeignLauncher:
    """Runs the executables of foreign shims."""

    def __init__(self, settings: Settings, owner: TaskOwner) -> None:
        self._settings = settings
        self._owner = owner
        self._publisher = publisher()
        self._newer: set[tuple[str, int]] = set()
        """Programs, by path and time of change, that want parameters at their start."""

    async def launch(
        self, binary: str, bundle: Bundle, options: TypedValue, undo: AsyncExitStack
    ) -> tuple[Client, ShimRecord]:
        """Starts a shim for the bundle and connects to it; pushes what undoes it.

        Raises Unknown (its own words), Unimplemented, Unavailable, DeadlineExceeded."""
        bundle.write_record(ShimRecord("", binary=binary))
        Path(bundle.path, "work").mkdir(0o711, exist_ok=True)
        self.read_log(bundle)

        async def clean_up() -> None:
            try:
                await self.run(binary, bundle, "delete", b"")
            except Error as error:  # the reason that we are here is what counts
                log.warning("container %s: %s", bundle.id, error)

        undo.push_async_callback(clean_up)
        endpoint = await self._start(binary, bundle, options)
        bundle.write_record(ShimRecord(endpoint.address, endpoint.version, binary))
        undo.push_async_callback(_end, bundle, endpoint)
        client = await connect(endpoint.address, _CONNECT_SECONDS)
        undo.callback(client.close)
        version, pid = await introduce(client, bundle, endpoint.version)
        started = process.start_time(pid) or 0
        return client, ShimRecord(endpoint.address, version, binary, pid, started)

    async def _start(self, binary: str, bundle: Bundle, options: TypedValue) -> bootstrap.Endpoint:
        """Starts the shim with the input that it wants. One that gets the wrong one refuses before
        it has done anything."""
        age = await asyncio.to_thread(_time_of_change, binary)
        params = bootstrap.params(self._settings, bundle, options, self._publisher)
        if (binary, age) not in self._newer:
            stdin = bootstrap.options(options)
            result = await self._run(binary, bundle, "start", stdin)
            if not result.status or not bootstrap.wants_params(result.last_words):
                return bootstrap.parse(_checked(binary, "start", result).stdout)
        result = await self.run(binary, bundle, "start", params)
        self._newer.add((binary, age))
        return bootstrap.parse(result.stdout)

    async def run(
        self,
        binary: str,
        bundle: Bundle,
        action: str,
        stdin: bytes,
        seconds: float = math.inf,
    ) -> command.Result:
        """One run of the executable, of ``seconds`` or as long as a shim may take, whichever is
        less. Raises Unknown with its last words, NotFound, DeadlineExceeded."""
        return _checked(binary, action, await self._run(binary, bundle, action, stdin, seconds))

    async def _run(
        self,
        binary: str,
        bundle: Bundle,
        action: str,
        stdin: bytes,
        seconds: float = math.inf,
    ) -> command.Result:
        settings = self._settings
        argv = [
            binary,
            *("-namespace", bundle.namespace),
            *("-address", settings.address),
            *("-publish-binary", self._publisher),
            *("-id", bundle.id),
        ]
        if action == "delete":
            argv += ["-bundle", bundle.path]
        if settings.log_level in ("debug", "trace"):
            argv.append("-debug")
        env = {
            **os.environ,
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": settings.ttrpc_address,
            "GRPC_ADDRESS": settings.address,
            "NAMESPACE": bundle.namespace,
            **settings.shim_env,
        }
        seconds = min(seconds, settings.shim_seconds)
        return await command.run(
            [*argv, action], seconds=seconds, stdin=stdin, cwd=bundle.path, env=env
        )

    def read_log(self, bundle: Bundle) -> None:
        """Takes what the shim logs into our log, for as long as it keeps its FIFO open."""
        path = f"{bundle.path}/log"
        fifo.make(path)
        self._owner.spawn(_copy_log(fifo.open_read(path), bundle.id), f"log {bundle.id}")


def _checked(binary: str, action: str, result: command.Result) -> command.Result:
    """Raises Unknown with the last words of a run that failed."""
    if result.status:
        raise Unknown(f"shim {binary!r} {action}: {result.last_words}")
    return result


def _time_of_change(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error


async def _end(bundle: Bundle, endpoint: bootstrap.Endpoint) -> None:
    """Has a shim end that was started in vain; one that holds others goes on."""
    try:
        client = await connect(endpoint.address, _CONNECT_SECONDS)
        try:
            shim = Shim(client, bundle.namespace, bundle.id, endpoint.version)
            async with asyncio.timeout(_END_SECONDS):
                await shim.shutdown()
                await shim.closed
        finally:
            client.close()
    except (Error, TimeoutError) as error:
        log.warning("container %s: its shim is not told to end: %s", bundle.id, error)


async def introduce(client: Client, bundle: Bundle, version: int) -> tuple[int, int]:
    """The version of the task service that a shim really has, at most ``version``, and its pid (0
    where it does not tell). A pod's shim may be older than the program that answers for it.

    Raises Unimplemented, Unavailable, DeadlineExceeded."""
    while True:
        shim = Shim(client, bundle.namespace, bundle.id, version)
        try:
            pid, _ = await shim.connect()
            return version, pid
        except Unimplemented:
            if version <= _OLDEST:
                raise
            version -= 1
        except NotFound:  # of a container that is not yet made
            return version, 0


async def _copy_log(fd: int, id: str) -> None:
    """Reads without a thread; the end comes when the shim has opened and closed its side."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    with os.fdopen(fd, "rb", 0) as file:
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            async for line in reader:
                log.info("shim %s: %s", id, line.decode(errors="replace").rstrip())
        except ValueError:
            log.warning("shim %s: a line of its log is too long", id)
        finally:
            transport.close()
