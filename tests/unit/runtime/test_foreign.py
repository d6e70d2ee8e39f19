"""Shims of other makers: what they print, and containerd's own runc shim for real."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import pytest

from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from supervisord.contracts.errors import Error, InvalidArgument, NotFound, Unimplemented, Unknown
from supervisord.contracts.tasks import Status
from supervisord.linux import process
from supervisord.runtime import names
from supervisord.runtime.foreign import Endpoint, parse_start

from .conftest import NS, Engine, needs_root, told, until

SHIM = shutil.which("containerd-shim-runc-v2")


def bootstrap(**fields: object) -> bytes:
    return bootstrap_pb2.BootstrapResult(**fields).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "endpoint"),
    [
        (b"unix:///run/s/abc\n", Endpoint("/run/s/abc", 2)),
        (b"/run/s/abc", Endpoint("/run/s/abc", 2)),
        (b"/containerd-shim/abc.sock", Endpoint("/containerd-shim/abc.sock", 2)),
        (b"abstract@name", Endpoint("@abstract@name", 2)),
        (
            b'{"version": 3, "address": "unix:///run/s/x", "protocol": "ttrpc"}',
            Endpoint("/run/s/x", 3),
        ),
        (
            bootstrap(version=3, address="unix:///run/s/x", protocol="ttrpc"),
            Endpoint("/run/s/x", 3),
        ),
        (bootstrap(version=2, address="unix:///run/s/x"), Endpoint("/run/s/x", 2)),
    ],
)
def test_what_a_shim_prints(output: bytes, endpoint: Endpoint) -> None:
    assert parse_start(output) == endpoint


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (b"", Unknown),
        (b'{"version": 9, "address": "unix:///x", "protocol": "ttrpc"}', Unimplemented),
        (b'{"version": 3, "address": "unix:///x", "protocol": "grpc"}', Unimplemented),
    ],
)
def test_what_we_do_not_speak(output: bytes, kind: type[Error]) -> None:
    with pytest.raises(kind):
        parse_start(output)


def test_names() -> None:
    assert names.resolve("io.containerd.runc.v2") == ""
    assert names.shim_binary("io.containerd.kata.v2") == "containerd-shim-kata-v2"
    assert names.resolve("/bin/sh") == "/bin/sh"
    for bad in ("", "runc", ".v2", "a/b.v2", "a..v2", "a.b\0.v2"):
        with pytest.raises(InvalidArgument, match="runtime"):
            names.resolve(bad)
    with pytest.raises(NotFound, match="binary not installed 'containerd-shim-nobody-v7'"):
        names.resolve("io.containerd.nobody.v7")
    with pytest.raises(NotFound, match="invalid custom binary path"):
        names.resolve("/no/such/shim")


needs_shim = pytest.mark.skipif(SHIM is None, reason="needs containerd-shim-runc-v2")


@needs_root
@needs_shim
async def test_containerds_own_shim(engine: Engine) -> None:
    assert SHIM is not None
    events = engine.exchange.subscribe()
    request = engine.container("web", "sh", "-c", "exit 3", runtime=SHIM)
    pid = await engine.manager.create(NS, request)
    assert await engine.manager.start(NS, "web") == pid
    exit = await engine.manager.wait(NS, "web")
    assert (exit.pid, exit.exit_status) == (pid, 3)
    await engine.restart()
    assert [task.exit_status for task in await engine.manager.list(NS)] in ([3], [0])
    assert (await engine.manager.get(NS, "web")).status is Status.STOPPED
    assert (await engine.manager.delete(NS, "web")).exit_status == 3
    assert [topic for topic, _ in await told(events, 3)] == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
    ]


@needs_root
@needs_shim
async def test_containerds_own_shim_dies(engine: Engine) -> None:
    assert SHIM is not None
    pid = await engine.manager.create(NS, engine.container("web", "sleep", "60", runtime=SHIM))
    await engine.manager.start(NS, "web")
    waiting = asyncio.ensure_future(engine.manager.wait(NS, "web"))
    await asyncio.sleep(0.05)
    os.kill(engine.manager._tasks[NS, "web"].record.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(waiting, 20)).exit_status == 137
    assert await until(lambda: process.start_time(pid) is None)


@needs_root
@needs_shim
async def test_a_failed_create_of_a_foreign_shim(engine: Engine) -> None:
    assert SHIM is not None
    request = engine.container("web", "no-such-program", runtime=SHIM)
    with pytest.raises(Unknown, match="no-such-program"):
        await engine.manager.create(NS, request)
    await engine.clean()


@needs_root
async def test_a_program_that_is_no_shim(engine: Engine) -> None:
    request = engine.container("web", "true", runtime="/bin/false")
    with pytest.raises(Unknown, match="shim '/bin/false' start: exit status 1"):
        await engine.manager.create(NS, request)
    await engine.clean()
