"""Programs on a read-only mount of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisord.linux import executable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def test_it_runs_and_cannot_be_written(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    fd = executable.read_only(str(program))
    try:
        path = f"/proc/{os.getpid()}/fd/{fd}"
        with pytest.raises(OSError, match="Read-only"):
            os.open(path, os.O_WRONLY)
        assert subprocess.run(["program"], executable=path, check=False).returncode == 0
        os.close(os.open(program, os.O_WRONLY))  # by its own path it still can
    finally:
        os.close(fd)
    assert not executable.is_read_only()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        executable.read_only(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("enabled", "own", "profiles", "confined"),
    [
        ("N", "unconfined\n", "crun (unconfined)\n", False),
        ("Y", "unconfined\n", "man_filter (enforce)\n/usr/bin/man (enforce)\n", False),
        ("Y", "unconfined\n", "man_filter (enforce)\ncrun (unconfined)\n", True),
        ("Y", "unconfined\n", "/usr/bin/crun (enforce)\n", True),
        ("Y", "supervisord (enforce)\n", "supervisord (enforce)\n", True),
        ("Y", "unconfined\n", "", False),
        ("Y", "unconfined\n", None, True),
        (None, None, None, False),
    ],
)
def test_apparmor_may_know_a_program_by_its_path(
    tmp_path: Path, enabled: str | None, own: str | None, profiles: str | None, confined: bool
) -> None:
    for path, text in (
        ("sys/module/apparmor/parameters/enabled", enabled),
        ("proc/self/attr/current", own),
        ("sys/kernel/security/apparmor/profiles", profiles),
    ):
        if text is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(text)
    assert executable.is_confined("/usr/bin/crun", str(tmp_path)) == confined
