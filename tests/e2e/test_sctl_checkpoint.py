"""``sctl tasks checkpoint``, ``containers checkpoint`` and ``restore`` where criu is not needed or
cannot: what criu does is tested in ``vm``, on a kernel that lets it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Stand
from tests.e2e.test_sctl_run import nothing_left, until


def status(stand: Stand, id: str) -> str:
    """What a task is doing; "" where there is none."""
    return {row[0]: row[2] for row in stand.sctl("tasks", "ls").rows()}.get(id, "")


def end(stand: Stand, *ids: str) -> None:
    for id in ids:
        if status(stand, id):
            stand.sctl("tasks", "rm", "--force", id)
        stand.sctl("containers", "rm", id)


@pytest.fixture
def without_criu() -> None:
    """Skips where criu could."""
    if subprocess.run(["criu", "check"], capture_output=True, check=False).returncode == 0:
        pytest.skip("criu can work with this kernel")


@pytest.mark.usefixtures("without_criu")
@pytest.mark.parametrize("more", [[], ["--exit"], ["--image-path", "IMAGE", "--work-path", "WORK"]])
def test_a_refused_checkpoint_leaves_all_as_it_was(
    stand: Stand, unique: str, tmp_path: Path, more: list[str]
) -> None:
    words = ["--runc-binary", "runc", stand.image, unique, "sleep", "600"]
    stand.sctl("run", "-d", "--null-io", *words)
    flags = [str(tmp_path / word) if word.isupper() else word for word in more]
    images = stand.sctl("images", "ls", "-q").out
    result = stand.sctl.refused("tasks", "checkpoint", *flags, unique, says="criu")
    assert result.err.startswith("sctl: ")
    assert result.err.count("\n") == 1
    assert status(stand, unique) == "RUNNING"
    assert stand.sctl("images", "ls", "-q").out == images
    assert stand.sctl("leases", "ls", "-q").out == ""
    stand.sctl.refused("containers", "checkpoint", "--task", unique, f"{unique}:c", says="criu")
    assert status(stand, unique) == "RUNNING"
    assert stand.sctl("images", "ls", "-q").out == images
    end(stand, unique)


def test_a_checkpoint_of_nothing(stand: Stand, unique: str) -> None:
    stand.sctl.refused("tasks", "checkpoint", unique, says=[unique, "not found"])
    stand.sctl("containers", "create", stand.image, unique, "true")
    stand.sctl.refused("tasks", "checkpoint", unique, says="not found")
    stand.sctl.refused("containers", "checkpoint", "--task", unique, "c:1", says="not found")
    assert "c:1" not in stand.sctl("images", "ls", "-q").out
    end(stand, unique)


def test_what_is_no_checkpoint(stand: Stand, unique: str, tmp_path: Path) -> None:
    words = ["--null-io", "-d", "--checkpoint", stand.image]
    stand.sctl.refused("run", *words, stand.image, unique, "true", says="checkpoint")
    assert nothing_left(stand, unique)
    stand.sctl("containers", "create", "--runc-binary", "runc", stand.image, unique, "true")
    refused = stand.sctl.refused("tasks", "start", *words, unique)
    assert "checkpoint" in refused.err
    assert status(stand, unique) == ""
    stand.sctl.refused("tasks", "start", "--checkpoint", str(tmp_path / "none"), unique)
    assert status(stand, unique) == ""
    stand.sctl("tasks", "start", unique)
    stand.sctl.refused("containers", "restore", f"{unique}-2", stand.image, says="checkpoint")
    stand.sctl.refused("containers", "restore", f"{unique}-2", "no/such:c", says="not found")
    assert nothing_left(stand, f"{unique}-2")
    end(stand, unique)


def test_a_container_is_restored_with_its_files(stand: Stand, unique: str) -> None:
    """From an image with the spec and the changed files; the first one still runs meanwhile."""
    script = "cat /made || echo made > /made; echo up; exec sleep 600"
    other, ref = f"{unique}-2", f"checkpoints/{unique}:1"
    first = ["--env", "A=b", stand.image, unique, "sh", "-c", script]
    stand.sctl("run", "-d", "--null-io", *first)
    until(lambda: "sleep" in stand.sctl("tasks", "exec", unique, "ps").out)
    stand.sctl("containers", "checkpoint", "--rw", "--image", unique, ref)
    assert status(stand, unique) == "RUNNING"
    assert ref in stand.sctl("images", "ls").out
    stand.sctl("images", "check")
    stand.sctl.refused("containers", "restore", "--live", other, ref, says="holds no memory")
    assert nothing_left(stand, other)

    stand.sctl("containers", "restore", "--rw", "-d", "--null-io", other, ref)
    assert status(stand, other) == "RUNNING"
    assert stand.sctl("tasks", "exec", other, "cat", "/made").out == "made\n"
    specs = [
        json.loads(stand.sctl("containers", "info", "--spec", id).out) for id in (unique, other)
    ]
    groups = [spec["linux"].pop("cgroupsPath") for spec in specs]
    assert specs[0] == specs[1]
    assert groups[1] == groups[0].replace(unique, other)
    end(stand, unique)
    assert stand.sctl("tasks", "exec", other, "echo", "alive").out == "alive\n"
    end(stand, other)
    stand.sctl("images", "rm", ref)
    assert nothing_left(stand, unique)


def test_a_restore_ends_with_the_exit_code(stand: Stand, unique: str) -> None:
    ref, other = f"checkpoints/{unique}:1", f"{unique}-2"
    stand.sctl("containers", "create", stand.image, unique, "sh", "-c", "echo out; exit 5")
    stand.sctl("containers", "checkpoint", unique, ref)
    assert ref in stand.sctl("images", "ls").out
    assert ref in stand.sctl("images", "check", code=None).out
    assert stand.sctl("containers", "restore", other, ref, code=5).out == "out\n"
    stand.sctl.refused("containers", "restore", "--rw", f"{unique}-3", ref, says="changed files")
    assert nothing_left(stand, f"{unique}-3")
    end(stand, unique, other)
    stand.sctl("images", "rm", ref)


def test_ctr_restores_what_sctl_wrote(stand: Stand, unique: str) -> None:
    ref, other = f"checkpoints/{unique}:1", f"{unique}-2"
    stand.sctl("run", "-d", "--null-io", stand.image, unique, "sh", "-c", "> /made; sleep 600")
    until(lambda: "sleep" in stand.sctl("tasks", "exec", unique, "ps").out)
    stand.sctl("containers", "checkpoint", "--rw", unique, ref)
    end(stand, unique)
    stand.shop.ctr("containers", "restore", "--rw", other, ref)
    assert "made" in stand.sctl("tasks", "exec", other, "ls", "/").out
    end(stand, other)
    stand.sctl("images", "rm", ref)
