"""Logs that shims write, opened anew through the task manager."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from supervisord.contracts.errors import FailedPrecondition, NotFound, Unimplemented
from supervisord.contracts.tasks import LogKeeper, Stdio

from .conftest import NS, Engine, needs_root, until

pytestmark = needs_root

SHIM = shutil.which("containerd-shim-runc-v2")


async def test_a_log_is_rotated_before_and_after_a_restart(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    script = "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.01; done"
    request = engine.container("web", "sh", "-c", script)
    stdio = Stdio(stdout=f"cri://{log}", stderr=f"cri://{log}")
    await engine.manager.create(NS, dataclasses.replace(request, stdio=stdio))
    await engine.manager.start(NS, "web")
    for number in range(2):
        assert await until(lambda: log.exists() and log.stat().st_size > 0)
        log.rename(tmp_path / f"0.log.{number}")
        keeper: LogKeeper = engine.manager
        await keeper.reopen_logs(NS, "web")
        assert log.exists()
        await engine.restart()
    assert await until(lambda: log.stat().st_size > 0)
    await engine.manager.kill(NS, "web", 9)
    await engine.manager.wait(NS, "web")
    await engine.manager.delete(NS, "web")
    text = "".join((tmp_path / name).read_text() for name in ("0.log.0", "0.log.1", "0.log"))
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    await engine.clean()


async def test_what_has_no_log(engine: Engine) -> None:
    with pytest.raises(NotFound):
        await engine.manager.reopen_logs(NS, "web")
    await engine.run("web", "sleep", "60")
    with pytest.raises(FailedPrecondition, match="no open log file"):
        await engine.manager.reopen_logs(NS, "web")
    with pytest.raises(NotFound):
        await engine.manager.reopen_logs(NS, "web", "exec")
    await engine.remove("web")
    await engine.clean()


@pytest.mark.skipif(SHIM is None, reason="needs containerd-shim-runc-v2")
async def test_another_shim_cannot(engine: Engine) -> None:
    assert SHIM is not None
    await engine.manager.create(NS, engine.container("web", "sleep", "60", runtime=SHIM))
    await engine.manager.start(NS, "web")
    with pytest.raises(Unimplemented):
        await engine.manager.reopen_logs(NS, "web")
    await engine.remove("web")
