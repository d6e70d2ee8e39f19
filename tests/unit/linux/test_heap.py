"""What the C library keeps of freed memory, counted in page faults and resident pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BUFFERS = """
import resource, sys
from supervisord.linux import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def work():
    for _ in range(100):
        buffers = [b'x' * (1 << 20) for _ in range(3)]
        buffers.clear()

if sys.argv[1] == 'keep' and not heap.keep_freed(4 << 20):
    sys.exit(3)
work()
before = faults()
work()
pages = faults() - before
held = resident()
heap.give_back()
print(pages, held - resident())
"""


def measured(what: str) -> tuple[int, int]:
    """Page faults of 300 buffers of 1 MiB, and the bytes given back at the end."""
    ended = subprocess.run(
        [sys.executable, "-c", _BUFFERS, what], capture_output=True, text=True, check=False
    )
    if ended.returncode == 3:
        pytest.skip("this kernel has no C library with mallopt")
    assert ended.stderr == ""
    pages, given = ended.stdout.split()
    return int(pages), int(given)


def test_kept_memory_is_not_asked_for_again() -> None:
    without, _ = measured("default")
    pages, given = measured("keep")
    assert without > 10_000, "or there is nothing to gain"
    assert pages < 500
    assert given > 1 << 20
