"""Moves of this process to where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisord.contracts.errors import NotFound
from supervisord.linux import migration


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_it_moves_nowhere() -> None:
    before = Path("/proc/self/cgroup").read_text()
    procs = migration.own_procs()
    assert str(os.getpid()) in Path(procs).read_text().split()
    migration.move_nowhere(procs)
    assert Path("/proc/self/cgroup").read_text() == before


@pytest.mark.parametrize(
    ("lines", "folder"),
    [
        ("4:pids:/a/b\n0::/a\n", "pids/a/b"),
        ("3:cpu,cpuacct:/\n0::/a\n", "cpu"),
        ("1:name=systemd:/user.slice\n", "systemd/user.slice"),
        ("0::/system.slice/x.service\n", "system.slice/x.service"),
        ("0::/\n", ""),
        ("9:gone:/a\n0::/b\n", "unified/b"),
    ],
)
def test_it_is_found_in_every_layout(tmp_path: Path, lines: str, folder: str) -> None:
    proc, root = tmp_path / "proc/self", tmp_path / "cgroup"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(lines)
    (root / folder).mkdir(parents=True)
    (root / folder / "cgroup.procs").write_text("")
    found = migration.own_procs(str(root), str(tmp_path / "proc"))
    assert found == str(root / folder / "cgroup.procs")


def test_without_groups(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="control group of this process"):
        migration.own_procs(str(tmp_path), str(tmp_path))
