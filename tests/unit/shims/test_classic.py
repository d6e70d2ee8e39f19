"""The shim as a program that containerd runs: start and delete."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Payload
from google.protobuf.empty_pb2 import Empty

from protos.containerd.runc.v1 import options_pb2
from protos.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from protos.containerd.task.v3 import shim_pb2 as v3
from protos.containerd.types import types_pb2
from shims.main import _group, delete, parse
from supervisord import __version__
from supervisord.contracts.errors import InvalidArgument, Unknown
from supervisord.linux import mount
from supervisord.ttrpc.client import Client

from .conftest import Shim, ShimRoom, eventually, needs_root, spec

pytestmark = needs_root

SYS_FLOCK = {"x86_64": 73, "aarch64": 32}.get(platform.machine())
ROOT = str(Path(__file__).parents[3])


def program(
    room: ShimRoom, bundle: Path, *arguments: str, stdin: bytes = b"", **environment: str
) -> bytes:
    """Runs the program in a bundle and answers what it prints."""
    code = (
        f"import shims.bootstrap as b; b.SOCKETS = {str(room.base)!r}; "
        f"import shims.main as m; m._RUNTIME_ROOT = {str(room.base / 'rt')!r}; m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-namespace", "ns", "-address", "/d.sock", *arguments],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        stdout=subprocess.PIPE,
        input=stdin,
        timeout=30,
        check=True,
    )
    return done.stdout


class Classic(Shim):
    """A shim that the program has started."""

    async def open(self) -> None:
        room = self.room
        arguments = ("-id", self.id, "start")
        publish = room.events.path
        printed = await asyncio.to_thread(
            program, room, self.bundle, *arguments, TTRPC_ADDRESS=publish
        )
        self.address = printed.decode().removeprefix("unix://")
        await self.connect()

    async def connect(self) -> None:
        self.client = await Client.connect(self.address)
        self.pid = (await self.call("Connect", v3.ConnectResponse)).shim_pid

    async def end(self) -> None:
        await self.call("Shutdown", Empty)
        await eventually(lambda: not Path(self.address).exists())


@pytest.fixture
async def classic(shims: ShimRoom) -> Classic:
    shim = Classic(shims, "classic", spec("classic", ["/bin/sh", "-c", "exit 6"]), "runc")
    shims.shims.append(shim)
    await shim.open()
    return shim


async def test_a_life(classic: Classic) -> None:
    events = classic.room.events
    await classic.create()
    await classic.start()
    assert await classic.wait() == 6
    await classic.delete()
    await events.until("/tasks/delete")
    assert events.topics[0] == "/tasks/create"
    assert os.getsid(classic.pid) == classic.pid
    assert Path(f"/proc/{classic.pid}/comm").read_text().startswith("supervisord")
    await classic.end()


async def test_a_second_start_finds_the_first(classic: Classic) -> None:
    printed = await asyncio.to_thread(
        program,
        classic.room,
        classic.bundle,
        "-id",
        "classic",
        "start",
        MAX_SHIM_VERSION="4",
    )
    assert json.loads(printed) == {
        "version": 3,
        "address": f"unix://{classic.address}",
        "protocol": "ttrpc",
    }
    await classic.end()


def params(room: ShimRoom, id: str, **more: Any) -> bytes:
    """What containerd 2.3 writes to a shim."""
    return bootstrap_pb2.BootstrapParams(
        instance_id=id,
        namespace="ns",
        containerd_version="2.3.0",
        containerd_grpc_address="/d.sock",
        containerd_ttrpc_address=room.events.path,
        containerd_binary="/bin/false",
        **more,
    ).SerializeToString()


async def test_started_by_bootstrap_parameters(shims: ShimRoom) -> None:
    """As containerd 2.3 does it: all that counts is on standard input."""
    shim = Classic(shims, "boot", spec("boot", ["/bin/sh", "-c", "exit 5"]), "runc")
    shims.shims.append(shim)
    sockets = shims.base / "sockets"
    stdin = params(shims, "boot", socket_dir=str(sockets), log_level="LOG_LEVEL_DEBUG")
    printed = await asyncio.to_thread(
        program, shims, shim.bundle, "-id", "boot", "start", stdin=stdin, MAX_SHIM_VERSION="2"
    )
    result = bootstrap_pb2.BootstrapResult.FromString(printed)
    assert (result.version, result.protocol) == (3, "ttrpc")
    shim.address = result.address.removeprefix("unix://")
    assert Path(shim.address).parent == sockets
    assert (shim.bundle / "address").read_text() == result.address
    await shim.connect()
    await shim.create()
    await shim.start()
    assert await shim.wait() == 5
    await shim.delete()
    await shims.events.until("/tasks/delete")
    await shim.end()


async def test_options_are_no_parameters(classic: Classic) -> None:
    """Older daemons write the runtime's options, which parse as parameters of another shim."""
    options = options_pb2.Options(binary_name="runc")
    for stdin in (
        Payload(type_url="containerd.runc.v1.Options", value=options.SerializeToString()),
        bootstrap_pb2.BootstrapParams(instance_id="other", namespace="ns"),
    ):
        printed = await asyncio.to_thread(
            program,
            classic.room,
            classic.bundle,
            *("-id", "classic", "start"),
            stdin=stdin.SerializeToString(),
        )
        assert printed.decode() == f"unix://{classic.address}"
    await classic.end()


async def test_members_that_start_at_once_share_a_shim(shims: ShimRoom) -> None:
    """Their sockets have the name of the group, whoever makes it."""
    members = [Classic(shims, f"m{n}", spec(f"m{n}", ["/bin/true"]), "runc") for n in range(4)]
    for shim in members:
        config = json.loads((shim.bundle / "config.json").read_bytes())
        config["annotations"] = {"io.containerd.runc.v2.group": "pod"}
        (shim.bundle / "config.json").write_text(json.dumps(config))
    shims.shims.extend(members)
    await asyncio.gather(*(shim.open() for shim in members))
    assert len({shim.pid for shim in members}) == 1
    for shim in members:
        await shim.create()
        await shim.start()
        assert await shim.wait() == 0
    for shim in members[1:]:
        await shim.delete()
        await shim.call("Shutdown", Empty)
        assert Path(shim.address).exists()
    await members[0].delete()
    await members[0].end()


@pytest.mark.skipif(SYS_FLOCK is None, reason="the number of flock is not known here")
def test_one_start_at_a_time(shims: ShimRoom) -> None:
    """Between the look at a group's socket and the shim that serves it nobody else may look."""
    bundle, sockets = shims.base / "waits", shims.base / "sockets"
    for folder in (bundle, sockets):
        folder.mkdir()
    (bundle / "config.json").write_text("{}")
    order = bootstrap_pb2.BootstrapParams(
        instance_id="waits", namespace="ns", socket_dir=str(sockets)
    )
    lock = os.open(sockets, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    started = subprocess.Popen(
        [sys.executable, "-m", "shims.main", "-namespace", "ns", "-id", "waits", "start"],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert started.stdin is not None
        started.stdin.write(order.SerializeToString())
        started.stdin.close()
        deadline = time.monotonic() + 20
        waits = f"{SYS_FLOCK} "
        while not Path(f"/proc/{started.pid}/syscall").read_text().startswith(waits):
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not list(sockets.iterdir())
    finally:
        os.close(lock)
        assert started.stdout is not None
        printed = started.stdout.read()
        started.stdout.close()
        started.wait(20)
    asyncio.run(_end(bootstrap_pb2.BootstrapResult.FromString(printed).address, "waits"))


async def test_what_it_can_do(shims: ShimRoom) -> None:
    options = options_pb2.Options(binary_name="/usr/sbin/runc")
    asked = Payload(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    printed = await asyncio.to_thread(
        program, shims, shims.base, "-info", stdin=asked.SerializeToString()
    )
    info = types_pb2.RuntimeInfo.FromString(printed)
    assert info.name == "io.containerd.supervisord.v2"
    assert info.version.version == f"v{__version__}"
    assert info.options == asked


def test_cores_of_its_own_or_a_clear_word(shims: ShimRoom) -> None:
    bundle = shims.base / "sched"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    arguments = [sys.executable, "-m", "shims.main", "-namespace", "ns", "-id", "sched"]
    stdin = bootstrap_pb2.BootstrapParams(
        instance_id="sched", namespace="ns", socket_dir=str(shims.base)
    )
    done = subprocess.run(
        [*arguments, "start"],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": ROOT, "SCHED_CORE": "1"},
        input=stdin.SerializeToString(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        assert b"enable sched core support: " in done.stderr
        return
    address = bootstrap_pb2.BootstrapResult.FromString(done.stdout).address
    asyncio.run(_end(address, "sched"))


async def _end(address: str, id: str) -> None:
    client = await Client.connect(address)
    request = v3.ShutdownRequest(id=id)
    await client.call("containerd.task.v3.Task", "Shutdown", request, Empty, timeout=10)
    await eventually(lambda: not Path(address.removeprefix("unix://")).exists())
    client.close()
    await client.wait_closed()


async def test_delete_cleans_up_after_a_dead_shim(classic: Classic) -> None:
    pid = await classic.create()
    os.kill(classic.pid, signal.SIGKILL)
    printed = await asyncio.to_thread(
        program, classic.room, classic.bundle, "-id", "classic", "delete"
    )
    response = v3.DeleteResponse.FromString(printed)
    assert (response.pid, response.exit_status) == (pid, 137)
    assert response.exited_at.seconds > 0
    assert not mount.mounted(str(classic.bundle / "rootfs"))
    await eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_delete_without_its_runtime_says_so(tmp_path: Path) -> None:
    (tmp_path / "runtime.json").write_text('{"binary": "/no/such/runtime", "root": "/none"}')
    with pytest.raises(Unknown, match=r"failed to remove container c: .*/no/such/runtime"):
        delete({"namespace": "ns", "id": "c", "bundle": str(tmp_path)})


@pytest.mark.parametrize("config", ["", "[1]", '{"annotations": 5}'])
def test_what_is_no_spec_says_so(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InvalidArgument, match="is no OCI runtime spec"):
        _group(tmp_path, "c")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidArgument, match="must not be nested so deeply"):
        _group(tmp_path, "c")


def test_flags() -> None:
    assert parse(["-namespace", "n", "--id=x", "-debug", "-bundle", "/b", "start"]) == (
        {"namespace": "n", "id": "x", "debug": "true", "bundle": "/b"},
        "start",
    )
    assert parse([]) == ({}, "")
