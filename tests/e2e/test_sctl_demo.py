"""The demo, as ``./dev demo`` runs it."""

from __future__ import annotations

import subprocess
import sys


def test_the_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "supervisord.cli.demo"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello from demo, pid 1" in done.stdout
    assert "ok exit code 42 came through" in done.stdout
    assert "ok no mounts, no processes, no cgroups" in done.stdout
    assert done.stderr == ""
