"""Tasks from checkpoints: their init is there only after Start, and a daemon may die at any time.

The runtime is runc, which makes the container anew where it is to restore one; CRIU is a stand-in.
``tests/e2e/vm`` has the real thing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protos.containerd.runc.v1 import options_pb2
from supervisord.contracts.errors import FailedPrecondition, Unimplemented, Unknown
from supervisord.contracts.images import Descriptor
from supervisord.contracts.tasks import CreateTask, Status
from supervisord.contracts.typed import pack

from .conftest import NS, Engine, needs_root

pytestmark = needs_root

SCRIPT = """#!/bin/sh
case " $* " in
*" restore "*)
	[ ! -e {fails} ] || exit 1
	while [ $# -gt 0 ]; do
		case $1 in
		--root) root=$2 ;;
		--bundle) bundle=$2 ;;
		--pid-file) pid=$2 ;;
		esac
		id=$1
		shift
	done
	{runc} --root "$root" create --bundle "$bundle" --pid-file "$pid" "$id" || exit
	[ ! -e {fails}-late ] || exit 1
	exec {runc} --root "$root" start "$id" ;;
*) exec {runc} "$@" ;;
esac
"""


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file whose existence fails a restore. Ask for it before ``engine``, whose processes
    inherit the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = SCRIPT.format(runc=shutil.which("runc"), fails=tmp_path / "fails")
    for name, text in (("criu", "#!/bin/sh\n"), ("runc", script)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield tmp_path / "fails"


def restored(engine: Engine, fails: Path) -> CreateTask:
    runtime = str(fails.parent / "bin/runc")
    options = options_pb2.Options(binary_name=runtime, criu_image_path="/image")
    return replace(engine.container("web", "sleep", "60"), options=pack(options))


async def until_status(engine: Engine, status: Status) -> None:
    for _ in range(500):
        if (await engine.manager.get(NS, "web")).status is status:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await engine.manager.get(NS, "web"))


async def test_daemons_come_and_go(fails: Path, engine: Engine) -> None:
    assert await engine.manager.create(NS, restored(engine, fails)) == 0
    await engine.restart()
    await until_status(engine, Status.CREATED)
    with pytest.raises(FailedPrecondition, match="process not created"):
        await engine.manager.kill(NS, "web", 9)
    pid = await engine.manager.start(NS, "web")
    assert engine.manager._tasks[NS, "web"].record.init_pid == pid > 0
    await engine.restart()
    await until_status(engine, Status.RUNNING)
    assert (await engine.manager.get(NS, "web")).pid == pid
    with pytest.raises(FailedPrecondition, match="cannot start a running process"):
        await engine.manager.start(NS, "web")
    await engine.manager.kill(NS, "web", 9)
    exit = await engine.manager.wait(NS, "web")
    assert (exit.pid, exit.exit_status) == (pid, 137)
    await engine.manager.delete(NS, "web")
    await engine.clean()


async def test_a_daemon_that_died_before_it_noted_the_start(fails: Path, engine: Engine) -> None:
    await engine.manager.create(NS, restored(engine, fails))
    task = engine.manager._tasks[NS, "web"]
    before = task.record
    pid = await engine.manager.start(NS, "web")
    task.bundle.write_record(before)
    await engine.restart()
    await until_status(engine, Status.RUNNING)
    assert engine.manager._tasks[NS, "web"].record.init_pid == pid
    await engine.remove("web")
    await engine.clean()


async def test_a_restore_that_fails(fails: Path, engine: Engine) -> None:
    await engine.manager.create(NS, restored(engine, fails))
    fails.touch()
    with pytest.raises(Unknown, match="OCI runtime restore failed"):
        await engine.manager.start(NS, "web")
    assert (await engine.manager.get(NS, "web")).status is Status.CREATED
    late = fails.rename(f"{fails}-late")  # the container is there then
    with pytest.raises(Unknown, match="OCI runtime restore failed"):
        await engine.manager.start(NS, "web")
    late.unlink()
    await engine.manager.start(NS, "web")
    await engine.remove("web")
    fails.touch()
    await engine.manager.create(NS, restored(engine, fails))
    await engine.manager.delete(NS, "web")
    await engine.clean()


async def test_a_folder_that_an_annotation_names(fails: Path, engine: Engine) -> None:
    options = options_pb2.Options(binary_name=str(fails.parent / "bin/runc"))
    checkpoint = Descriptor(annotations={"RestoreFromPath": f"{fails.parent}/image"})
    request = replace(restored(engine, fails), options=pack(options), checkpoint=checkpoint)
    fails.touch()
    with pytest.raises(Unknown, match="OCI runtime restore failed"):
        await engine.manager.create(NS, request)
    await engine.clean()
    fails.unlink()
    pid = await engine.manager.create(NS, request)
    assert pid > 0  # such a client does not start it
    task = await engine.manager.get(NS, "web")
    assert (task.status, task.pid) == (Status.RUNNING, pid)
    await engine.remove("web")
    (fails.parent / "rootfs-diff.tar").touch()
    with pytest.raises(Unimplemented, match=r"rootfs-diff\.tar"):
        await engine.manager.create(NS, request)
    await engine.clean()
