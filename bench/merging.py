"""The kernel's samepage merging, switched on for a moment, and as it was afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KSM = Path("/sys/kernel/mm/ksm")
_QUICK = {"pages_to_scan": "20000", "sleep_millisecs": "20", "run": "1"}
_UNMERGE = "2"
_SCANS = 4
"""The first only looks for pages that rest, the second merges; the rest is for what moved."""
_MOST_SECONDS = 10.0
"""Where nothing was offered, nothing is looked through."""


@contextmanager
def merging() -> Iterator[None]:
    """While the block runs, what was offered is merged: it begins when all was looked through a few
    times, quicker than the kernel would by itself. Raises OSError where it knows no merging."""
    before = {name: (_KSM / name).read_text() for name in _QUICK}
    try:
        for name, value in _QUICK.items():
            (_KSM / name).write_text(value)
        enough = _scans() + _SCANS
        deadline = time.monotonic() + _MOST_SECONDS
        while _scans() < enough and time.monotonic() < deadline:
            time.sleep(0.2)
        yield
    finally:
        if before["run"].strip() == "0":
            (_KSM / "run").write_text(_UNMERGE)
        for name, value in before.items():
            (_KSM / name).write_text(value)


def _scans() -> int:
    return int((_KSM / "full_scans").read_text())
