"""A short soak: what the daemon, the zygote and a long-lived shim hold does not grow with use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.soak import soaked

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("busybox") is None or shutil.which("runc") is None,
    reason="containers need root, runc and busybox",
)

PASSING = ("descriptors of daemon", "threads of daemon", "threads of zygote")
"""The daemon's pool of threads, each with its database connections, grows to its bound first."""

SHIM_KIB = 1024


def test_nothing_is_kept_of_what_has_ended(short_temporary_folder: Path) -> None:
    base = short_temporary_folder / "soak"
    base.mkdir()
    soak = soaked(base, "runc", rounds=3, lifecycles=6, execs=12, parallel=3)
    assert soak.failures == []
    first, last = soak.samples[0], soak.samples[-1]
    for name, count in last.counts.items():
        if name not in PASSING:
            assert count == first.counts[name], name
    assert last.counts["descriptors of daemon"] < first.counts["descriptors of daemon"] + 40
    grown = last.memory["shim"] - first.memory["shim"]
    assert grown < SHIM_KIB << 10, f"the shim grew by {grown >> 10} KiB in 24 execs"
    assert last.memory["zygote"] - first.memory["zygote"] < SHIM_KIB << 10
