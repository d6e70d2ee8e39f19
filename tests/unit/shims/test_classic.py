"""The shim as a program that containerd runs: start and delete."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from protos.containerd.task.v3 import shim_pb2 as v3
from shims.main import parse
from supervisord.linux import mount
from supervisord.ttrpc.client import Client

from .conftest import Shim, ShimRoom, eventually, needs_root, spec

pytestmark = needs_root

ROOT = str(Path(__file__).parents[3])


def program(room: ShimRoom, bundle: Path, *arguments: str, **environment: str) -> bytes:
    """Runs the program in a bundle and answers what it prints."""
    code = (
        f"import shims.main as m; m._SOCKETS = {str(room.base)!r}; "
        f"m._RUNTIME_ROOT = {str(room.base / 'rt')!r}; m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-namespace", "ns", "-address", "/d.sock", *arguments],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        stdout=subprocess.PIPE,
        timeout=30,
        check=True,
    )
    return done.stdout


class Classic(Shim):
    """A shim that the program has started."""

    async def open(self) -> None:
        room = self.room
        arguments = ("-id", self.id, "start")
        environment = {"TTRPC_ADDRESS": room.events.path}
        printed = await asyncio.to_thread(program, room, self.bundle, *arguments, **environment)
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


def test_flags() -> None:
    assert parse(["-namespace", "n", "--id=x", "-debug", "-bundle", "/b", "start"]) == (
        {"namespace": "n", "id": "x", "debug": "true", "bundle": "/b"},
        "start",
    )
    assert parse([]) == ({}, "")
