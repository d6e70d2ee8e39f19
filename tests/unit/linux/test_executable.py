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
