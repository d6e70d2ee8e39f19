"""What the zygote does before its first fork."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Sockets in it have names that are short enough."""
    with tempfile.TemporaryDirectory(prefix="pre-", dir="/tmp") as path:
        yield Path(path)


def _run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_a_life_is_rehearsed_to_its_end(folder: Path) -> None:
    code = "import os; from shims.zygote import load; load('shim'); os.write(2, b'still there')"
    done = _run(code, TMPDIR=str(folder))
    assert done.stderr == "still there"  # a warning would say that it failed
    assert list(folder.iterdir()) == []


def test_a_life_that_cannot_be_rehearsed_is_told(folder: Path) -> None:
    code = """
from shims import preload, worker
def no(*_): raise OSError(5, "no")
preload.spawn = no
worker.settle()
preload.warm()
"""
    assert "no rehearsal" in _run(code, TMPDIR=str(folder)).stderr
    assert list(folder.iterdir()) == []


def test_nothing_is_allocated_between_what_is_in_use() -> None:
    code = """
import ctypes
from supervisord.linux import heap
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_size_t
blocks = [libc.malloc(4000) for _ in range(200)]
for block in blocks[::2]:
    libc.free(ctypes.c_size_t(block))
reused = libc.malloc(4000)
heap.use_up()
after = [libc.malloc(size) for size in (4000, 3000, 2000, 1000)]
print(int(reused in blocks), int(min(after) > max(blocks)))
"""
    assert _run(code).stdout.split() == ["1", "1"]
