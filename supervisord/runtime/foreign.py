"""Starts shims of other makers, the way containerd does.

``BINARY -namespace NS -address GRPC -publish-binary P -id ID start`` runs in the bundle, is told
the rest by its environment, gets the runtime's options as an ``Any`` on its standard input (which
shims of all ages understand), and prints where it listens: a BootstrapResult message, JSON, or a
bare address. ``... -bundle PATH delete`` cleans up after a dead shim and prints
a DeleteResponse. A shim writes its log to the FIFO ``log`` in the bundle.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import Error, Unimplemented, Unknown
from supervisord.contracts.typed import TypedValue
from supervisord.linux import fifo, process
from supervisord.ttrpc.client import Client

from . import command
from .bundle import Bundle, ShimRecord
from .launch import Settings, connect
from .shim import Shim

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_NEWEST = 3


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a started shim listens, and the version of its task service."""

    address: str
    version: int


def parse_start(output: bytes) -> Endpoint:
    """What a shim printed at its start. Raises Unimplemented for a protocol or version that we
    do not speak, Unknown for no address."""
    version, address, protocol = 2, output.decode(errors="replace").strip(), "ttrpc"
    try:
        message = bootstrap_pb2.BootstrapResult.FromString(output)
    except DecodeError:
        message = bootstrap_pb2.BootstrapResult()
    if message.address and message.version:
        version, address = message.version, message.address
        protocol = message.protocol or "ttrpc"
    else:
        try:
            values = json.loads(output)
        except ValueError:
            values = None
        if isinstance(values, dict) and int(values.get("version", 0)) >= 2:
            version = int(values["version"])
            address = str(values.get("address", ""))
            protocol = str(values.get("protocol", "ttrpc"))
    if version > _NEWEST:
        raise Unimplemented(f"unsupported shim version ({version})")
    if protocol != "ttrpc":
        raise Unimplemented(f"shim protocol {protocol!r} is not supported")
    if not address:
        raise Unknown("the shim printed no address")
    if not address.startswith("unix://"):
        address = "@" + address.removeprefix("@") if not address.startswith("/") else address
    return Endpoint(address.removeprefix("unix://"), version)


class ForeignLauncher:
    """Runs the executables of foreign shims."""

    def __init__(self, settings: Settings, owner: TaskOwner) -> None:
        self._settings = settings
        self._owner = owner

    async def launch(
        self, binary: str, bundle: Bundle, options: TypedValue, undo: AsyncExitStack
    ) -> tuple[Client, ShimRecord]:
        """Starts a shim for the bundle and connects to it; pushes what undoes it.

        Raises Unknown (its own words), Unimplemented, Unavailable, DeadlineExceeded."""
        bundle.write_record(ShimRecord("", binary=binary))
        self.read_log(bundle)

        async def clean_up() -> None:
            try:
                await self.run(binary, bundle, "delete", b"", _START_SECONDS)
            except Error as error:  # the reason that we are here is what counts
                log.warning("container %s: %s", bundle.id, error)

        undo.push_async_callback(clean_up)
        stdin = Any(type_url=options.type_url, value=options.value).SerializeToString()
        result = await self.run(binary, bundle, "start", stdin, _START_SECONDS)
        endpoint = parse_start(result.stdout)
        record = ShimRecord(endpoint.address, endpoint.version, binary)
        bundle.write_record(record)
        client = await connect(endpoint.address, 10.0)
        undo.callback(client.close)
        shim = Shim(client, bundle.namespace, bundle.id, endpoint.version)
        pid, _ = await shim.connect()
        return client, ShimRecord(
            endpoint.address, endpoint.version, binary, pid, process.start_time(pid) or 0
        )

    async def run(
        self, binary: str, bundle: Bundle, action: str, stdin: bytes, seconds: float
    ) -> command.Result:
        """One run of the executable. Raises Unknown with its last words, NotFound,
        DeadlineExceeded."""
        settings = self._settings
        argv = [
            binary,
            *("-namespace", bundle.namespace),
            *("-address", settings.address),
            *("-publish-binary", sys.argv[0]),
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
        }
        result = await command.run(
            [*argv, action], seconds=seconds, stdin=stdin, cwd=bundle.path, env=env
        )
        if result.status:
            raise Unknown(f"shim {binary!r} {action}: {result.last_words}")
        return result

    def read_log(self, bundle: Bundle) -> None:
        """Takes what the shim logs into our log, for as long as it keeps its FIFO open."""
        path = f"{bundle.path}/log"
        fifo.make(path)
        self._owner.spawn(_copy_log(fifo.open_read(path), bundle.id), f"log {bundle.id}")


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
