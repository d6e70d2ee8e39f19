"""The choice of the OCI runtime: tried for real, remembered, fixed by configuration."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisord.aio.owner import TaskOwner
from supervisord.contracts.errors import FailedPrecondition
from supervisord.runtime import oci

from .conftest import needs_root, until


@pytest.fixture
async def owner() -> AsyncIterator[TaskOwner]:
    owner = TaskOwner("test")
    yield owner
    await owner.close()


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho ran >> {folder}/{name}.ran\n{text}\n")
    path.chmod(0o755)
    return path


def runs(folder: Path, name: str) -> int:
    ran = folder / f"{name}.ran"
    return len(ran.read_text().splitlines()) if ran.exists() else 0


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(oci, "_PATH", str(folder))
    return folder


@needs_root
async def test_a_real_runtime_runs_a_real_container() -> None:
    runc = shutil.which("runc")
    assert runc is not None
    assert await oci.trial(runc) == ""


async def test_what_does_not_work_says_why(tmp_path: Path) -> None:
    broken = program(tmp_path, "broken", "echo 'cgroups: no luck' >&2; exit 1")
    assert await oci.trial(str(broken)) == "cgroups: no luck"
    assert "No such file" in await oci.trial(str(tmp_path / "none"))


async def test_a_caller_that_goes_away_stops_no_trial_halfway(tmp_path: Path) -> None:
    slow = program(tmp_path, "slow", 'sleep 0.3; echo "$3" >> "$0.done"')
    trial = asyncio.ensure_future(oci.trial(str(slow)))
    await asyncio.sleep(0.1)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert await until((tmp_path / "slow.done").exists)
    assert (tmp_path / "slow.done").read_text() == "run\n"


async def test_the_preferred_one_where_it_works(
    tmp_path: Path, search_path: Path, owner: TaskOwner
) -> None:
    program(search_path, "crun", "exit 0")
    program(search_path, "runc", "exit 0")
    assert await oci.OciRuntimes(str(tmp_path), owner).default() == str(search_path / "crun")
    assert await oci.OciRuntimes(str(tmp_path), owner).default() == str(search_path / "crun")
    assert runs(search_path, "crun") == 1, "the second time it is remembered"
    assert runs(search_path, "runc") == 0, "the last resort is not tried"
    program(search_path, "crun", "exit 1  # another build")
    assert await oci.OciRuntimes(str(tmp_path), owner).default() == str(search_path / "runc")


async def test_the_other_where_it_does_not(
    tmp_path: Path, search_path: Path, owner: TaskOwner
) -> None:
    program(search_path, "crun", "echo no >&2; exit 1")
    program(search_path, "runc", "exit 0")
    (tmp_path / "oci-runtime.json").write_text("{ damaged")
    assert await oci.OciRuntimes(str(tmp_path), owner).default() == str(search_path / "runc")
    (known,) = json.loads((tmp_path / "oci-runtime.json").read_text()).values()
    assert known is False


async def test_none_at_all(tmp_path: Path, search_path: Path, owner: TaskOwner) -> None:
    runtimes = oci.OciRuntimes(str(tmp_path), owner)
    runtimes.begin()
    with pytest.raises(FailedPrecondition, match="install crun or runc"):
        await runtimes.default()


async def test_fixed_by_configuration(tmp_path: Path, owner: TaskOwner) -> None:
    runtimes = oci.OciRuntimes(str(tmp_path), owner, fixed="/opt/mine")
    assert await runtimes.default() == "/opt/mine"
